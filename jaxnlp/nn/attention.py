"""Attention layers and score functions.

`Additive`, `General`, `Dot` and `ScaledDot` are score functions with one interface; `Attention` is a single-head layer
with any of them. `MultiHeadAttention` is the Transformer's layer, with a kernel of `nn/kernels.py`.
Shape legend: B batch, T query length, S key length, D model, A score units, H query heads, N key
and value heads, K head size.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.kernels import MASKED, AttentionKernel, Blocked, DotProduct, Einsum, Flash, attention_weights
from jaxnlp.nn.linear import Initializer, Linear
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.norms import Norm
from jaxnlp.nn.partitioning import gather_sequence, parameter, scatter_sequence, shard_heads
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.positions import PositionEncoding

__all__ = ["Blocked", "DotProduct", "Einsum", "Flash"]  # old configs name them in this module

WEIGHTS = "attention_weights"  # their name among the intermediates of `MultiHeadAttention`
ROWS = (((2,), (2,)), ((0,), (0,)))  # (B, T, D) and (B, S, D) to (B, T, S), for `Policy.dot`


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Score:
    """Base class of the score functions."""

    def build(self, policy: Policy, name: str | None = None) -> nn.Module:
        """A module (q_BTD, k_BSD) -> scores_BTS, float32."""
        raise TypeError(f"{type(self).__name__}: a score function must define build()")


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Dot(Score):
    """q . k (Luong et al. 2015, arXiv:1508.04025, section 3.1, "dot")."""

    def build(self, policy: Policy, name: str | None = None) -> nn.Module:
        return _DotScore(False, policy, name=name)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class ScaledDot(Score):
    """q . k / sqrt(D) (Vaswani et al. 2017, section 3.2.1)."""

    def build(self, policy: Policy, name: str | None = None) -> nn.Module:
        return _DotScore(True, policy, name=name)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class General(Score):
    """q W k, the multiplicative score (Luong et al. 2015, "general"); queries and keys may differ in size."""

    def build(self, policy: Policy, name: str | None = None) -> nn.Module:
        return _GeneralScore(policy, name=name)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Additive(Score):
    """v . tanh(W q + U k + b) (Bahdanau et al. 2015, arXiv:1409.0473, appendix A.1.2).

    hidden_dim: A, units of the hidden layer; None: the size of the keys.
    """

    hidden_dim: int | None = None

    def check(self) -> None:
        if self.hidden_dim is not None and self.hidden_dim < 1:
            raise FieldError("hidden_dim", self.hidden_dim, "expected a positive number of units, or None")

    def build(self, policy: Policy, name: str | None = None) -> nn.Module:
        return _AdditiveScore(self.hidden_dim, policy, name=name)


class _DotScore(nn.Module):
    scaled: bool
    policy: Policy

    def __call__(self, q_BTD: jax.Array, k_BSD: jax.Array) -> jax.Array:
        """scores_BTS, float32."""
        if q_BTD.shape[-1] != k_BSD.shape[-1]:
            raise UserError(
                f"attention score: queries have {q_BTD.shape[-1]} features and keys {k_BSD.shape[-1]}; "
                "a dot product needs equal sizes; use General() or Additive()"
            )
        scores_BTS = self.policy.dot(self.policy.operand(q_BTD), self.policy.operand(k_BSD), ROWS)
        return scores_BTS * q_BTD.shape[-1] ** -0.5 if self.scaled else scores_BTS


class _GeneralScore(nn.Module):
    """Parameter: `query` (D of queries, D of keys)."""

    policy: Policy

    @nn.compact
    def __call__(self, q_BTD: jax.Array, k_BSD: jax.Array) -> jax.Array:
        """scores_BTS, float32."""
        init = nn.initializers.glorot_uniform()
        project = Linear(
            (k_BSD.shape[-1],), ("embed", "kv"), self.policy, use_bias=False, kernel_init=init, name="query"
        )
        return _DotScore(False, self.policy)(project(q_BTD), k_BSD)


class _AdditiveScore(nn.Module):
    """Parameters: `query` (D, A) with bias, `key` (D, A), `out` (A,)."""

    hidden_dim: int | None
    policy: Policy

    @nn.compact
    def __call__(self, q_BTD: jax.Array, k_BSD: jax.Array) -> jax.Array:
        """scores_BTS, float32."""
        A = self.hidden_dim or k_BSD.shape[-1]
        init, axes = nn.initializers.glorot_uniform(), ("embed", "mlp")
        q_BTA = Linear((A,), axes, self.policy, kernel_init=init, name="query")(q_BTD)
        k_BSA = Linear((A,), axes, self.policy, use_bias=False, kernel_init=init, name="key")(k_BSD)
        out_A = parameter(self, "out", nn.initializers.normal(A**-0.5), ("mlp",), (A,), self.policy.param_dtype)
        hidden_BTSA = jnp.tanh(q_BTA[:, :, None].astype(jnp.float32) + k_BSA[:, None].astype(jnp.float32))
        return hidden_BTSA @ out_A.astype(jnp.float32)


class Attention(nn.Module):
    """softmax(score(q, k)) v with one head, as in recurrent seq2seq decoders."""

    score: Score
    policy: Policy

    @nn.compact
    def __call__(self, q_BTD, k_BSD, v_BSD, mask: Mask | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns (context_BTD, weights_BTS). A fully masked row gets the mean of all values."""
        scores_BTS = self.score.build(self.policy, name="score")(q_BTD, k_BSD)
        allowed = None if mask is None else mask.dense(q_BTD.shape[1], k_BSD.shape[1])
        if allowed is not None:
            scores_BTS = jnp.where(allowed[:, 0], scores_BTS, MASKED)
        weights_BTS = jax.nn.softmax(scores_BTS, axis=-1)
        context_BTD = self.policy.dot(weights_BTS, self.policy.operand(v_BSD), (((2,), (1,)), ((0,), (0,))))
        return context_BTD.astype(self.policy.dtype), weights_BTS


class MultiHeadAttention(nn.Module):
    """Attention with `num_heads` query heads and `num_kv_heads` <= num_heads heads of keys and values.

    Vaswani et al. 2017, section 3.2.2; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.
    Computes self-attention, or cross-attention to the keys and values of another sequence (see `keys_values`).
    Parameters: `query` (D, H, K), `key` and `value` (D, N, K), `out` (H, K, D).

    scale: factor of the scores; None: 1/sqrt(head_dim). T5's is 1.

    If the collection "intermediates" is mutable, the weights (B, H, T, S) are stored there as `attention_weights`.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    implementation: AttentionKernel
    positions: PositionEncoding
    policy: Policy
    use_bias: bool = True
    use_qkv_bias: bool | None = None
    qk_norm: Norm | None = None
    softcap: float | None = None
    scale: float | None = None
    dropout_rate: float = 0.0
    query_init: Initializer = nn.initializers.normal(0.02)
    key_value_init: Initializer = nn.initializers.normal(0.02)
    out_init: Initializer = nn.initializers.normal(0.02)

    def setup(self):
        use_bias = self.use_bias if self.use_qkv_bias is None else self.use_qkv_bias

        def heads(count, axis, init):
            axes = ("embed", axis, "kv")
            return Linear((count, self.head_dim), axes, self.policy, use_bias=use_bias, kernel_init=init)

        self.query = heads(self.num_heads, "heads", self.query_init)
        self.key = heads(self.num_kv_heads, "kv_heads", self.key_value_init)
        self.value = heads(self.num_kv_heads, "kv_heads", self.key_value_init)
        if self.qk_norm is not None:
            self.query_norm = self.qk_norm.build(self.policy)
            self.key_norm = self.qk_norm.build(self.policy)

    def keys_values(self, x_BSD, positions_BS=None) -> tuple[jax.Array, jax.Array]:
        """Keys and values of a sequence, each (B, S, N, K); the keys are rotated by its positions, if given."""
        k_BSNK, v_BSNK = shard_heads(self.key(x_BSD), "kv_heads"), shard_heads(self.value(x_BSD), "kv_heads")
        if self.qk_norm is not None:
            k_BSNK = self.key_norm(k_BSNK)
        return k_BSNK if positions_BS is None else self.positions.rotate(k_BSNK, positions_BS), v_BSNK

    @nn.compact
    def __call__(
        self, x_BTD, mask: Mask, positions_BT=None, *, keys_values=None, cache=None, bias=None, deterministic=True
    ):
        """Returns (y_BTD, cache).

        Args:
            positions_BT: positions for rotary encodings; None: no rotation.
            keys_values: keys and values of another sequence, for cross-attention; None: those of x.
            cache: a pair (k, v) of shape (B, N, S, K) that x's keys and values are written into, at `mask.offset`.
            bias: (B or 1, H, T, S), added to the scores.
        """
        x_BTD = gather_sequence(x_BTD)
        q_BTHK = shard_heads(self.query(x_BTD), "heads")
        if self.qk_norm is not None:
            q_BTHK = self.query_norm(q_BTHK)
        if positions_BT is not None:
            q_BTHK = self.positions.rotate(q_BTHK, positions_BT)
        k_BSNK, v_BSNK = self.keys_values(x_BTD, positions_BT) if keys_values is None else keys_values
        if cache is not None:
            cache = tuple(_write(c, x, mask.offset) for c, x in zip(cache, (k_BSNK, v_BSNK), strict=True))
            k_BSNK, v_BSNK = (jnp.swapaxes(c, 1, 2) for c in cache)
        q_BTHK, k_BSNK = checkpoint_name(q_BTHK, "query"), checkpoint_name(k_BSNK, "key")
        v_BSNK, dropout = checkpoint_name(v_BSNK, "value"), None
        if self.dropout_rate and not deterministic:
            dropout = (self.dropout_rate, self.make_rng("dropout"))
        scores = {"policy": self.policy, "softcap": self.softcap, "scale": self.scale, "bias": bias}
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            self.sow("intermediates", WEIGHTS, attention_weights(q_BTHK, k_BSNK, mask, **scores))
        out_BTHK = functools.partial(self.implementation, dropout=dropout, **scores)(q_BTHK, k_BSNK, v_BSNK, mask)
        out_BTHK = checkpoint_name(out_BTHK, "context")
        out = Linear(
            (x_BTD.shape[-1],),
            ("heads", "kv", "embed"),
            self.policy,
            num_in=2,
            use_bias=self.use_bias,
            kernel_init=self.out_init,
            name="out",
        )
        return checkpoint_name(scatter_sequence(out(out_BTHK)), "attention_out"), cache


def _write(cache_BNSK, new_BTNK, offset):
    new_BNTK = jnp.swapaxes(new_BTNK, 1, 2).astype(cache_BNSK.dtype)
    return lax.dynamic_update_slice(cache_BNSK, new_BNTK, (0, 0, offset, 0))
