"""Attention: the kernels to choose from, and the multi-head layer around them.

A kernel is a small config object, called as `kernel(q, k, v, mask, policy=..., ...)`. All give
the same numbers within rounding (tested); they differ in speed, memory and platform.
Shape legend: B batch, T query length, S key length, D model, H query heads, N key and value
heads, K head size.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.linear import Initializer, Linear
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.partitioning import mesh_axes, sharded_call
from jaxnlp.nn.policy import Policy

SCORES = (((3,), (3,)), ((0, 1), (0, 1)))  # R x K and S x K to R x S, for `Policy.dot`
MIX = (((3,), (2,)), ((0, 1), (0, 1)))  # R x S and S x K to R x K
SPREAD = (((2,), (2,)), ((0, 1), (0, 1)))  # R x S and R x K to S x K
MASKED = -1e30  # finite, so that a row with every key masked gives a mean and not NaN


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Einsum:
    """softmax(q k^T / sqrt(K)) v, written out (Vaswani et al. 2017, equation 1). Runs anywhere."""

    platforms = ("cpu", "gpu", "tpu")
    features = ("dropout", "softcap")

    def __call__(self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, softcap=None, dropout=None):
        dense = mask.dense(q_BTHK.shape[1], k_BSNK.shape[1])
        return attend(q_BTHK, k_BSNK, v_BSNK, dense, policy=policy, softcap=softcap, dropout=dropout)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Blocked:
    """`Einsum` over blocks of queries, each against the keys up to its own end.

    Skips the half of the scores a causal mask would throw away: faster than `Einsum` on CPU
    for sequences of several blocks, and lighter in memory. The loop is unrolled.
    """

    platforms = ("cpu", "gpu", "tpu")
    features = ("dropout", "softcap")
    block: int = 64

    def check(self) -> None:
        if self.block < 1:
            raise FieldError("block", self.block, "expected a positive number of queries, as 64")

    def __call__(self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, softcap=None, dropout=None):
        length = q_BTHK.shape[1]
        if not mask.causal or k_BSNK.shape[1] != length or length <= self.block:
            return Einsum()(q_BTHK, k_BSNK, v_BSNK, mask, policy=policy, softcap=softcap, dropout=dropout)
        # Keys in pieces: their gradients are then sums of pieces, not of arrays padded to the full length.
        stops = [*range(self.block, length, self.block), length]
        sizes = [stop - start for start, stop in zip([0, *stops], stops, strict=False)]
        queries, keys, values = (lax.split(x, sizes, axis=1) for x in (q_BTHK, k_BSNK, v_BSNK))
        out = []
        for i, (stop, query) in enumerate(zip(stops, queries, strict=True)):
            dense = mask.rows(stop - sizes[i], stop).dense(sizes[i], stop)
            drop = dropout and (dropout[0], jax.random.fold_in(dropout[1], i))
            key, value = (jnp.concatenate(x[: i + 1], axis=1) for x in (keys, values))
            out.append(attend(query, key, value, dense, policy=policy, softcap=softcap, dropout=drop))
        return jnp.concatenate(out, axis=1)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class DotProduct:
    """`jax.nn.dot_product_attention`: XLA's own form, or cuDNN's flash attention on a GPU.

    implementation: "xla", "cudnn" (GPU with float16 or bfloat16 operands), or None for JAX's choice.
    """

    features = ()
    implementation: str | None = None

    @property
    def platforms(self) -> tuple[str, ...]:
        return ("gpu",) if self.implementation == "cudnn" else ("cpu", "gpu", "tpu")

    def check(self) -> None:
        if self.implementation not in (None, "xla", "cudnn"):
            raise FieldError("implementation", self.implementation, "expected 'xla', 'cudnn' or None")

    def __call__(self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, softcap=None, dropout=None):
        aligned = mask.causal and q_BTHK.shape[1] == k_BSNK.shape[1] and mask.query_segments_BT is None
        dense = None if aligned else mask.dense(q_BTHK.shape[1], k_BSNK.shape[1])
        q, k, v = (x.astype(policy.operand_dtype) for x in (q_BTHK, k_BSNK, v_BSNK))
        kernel: Any = self.implementation
        out = jax.nn.dot_product_attention(q, k, v, mask=dense, is_causal=aligned, implementation=kernel)
        return out.astype(policy.dtype)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Flash:
    """Pallas splash attention for TPU: scores never leave the chip's fast memory, masked blocks are skipped.

    interpret: run the kernel's program step by step on any platform (slow; for tests).
    Sequence length must be a multiple of 128. Decoding with a cache falls to `Einsum`'s form,
    where one query row leaves nothing to fuse.
    """

    platforms = ("tpu",)
    features = ("softcap",)
    block: int = 512
    interpret: bool = False

    def check(self) -> None:
        if self.block < 128 or self.block % 128:
            raise FieldError("block", self.block, "expected a multiple of 128, as 512")

    def __call__(self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, softcap=None, dropout=None):
        length = q_BTHK.shape[1]
        if k_BSNK.shape[1] != length:
            return Einsum()(q_BTHK, k_BSNK, v_BSNK, mask, policy=policy, softcap=softcap)
        if length % 128:
            raise UserError(
                f"attention Flash(): sequence length {length} is not a multiple of 128; change data.seq_len"
            )
        q, k, v = (jnp.swapaxes(x.astype(policy.operand_dtype), 1, 2) for x in (q_BTHK, k_BSNK, v_BSNK))
        q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
        segments_BT = mask.query_segments_BT
        if segments_BT is None:
            segments_BT = jnp.ones((q.shape[0], length), jnp.int32)
        run = functools.partial(_splash, self.block, self.interpret, mask.causal, softcap)
        heads, keys = ("batch", "heads", "length", "kv"), ("batch", "kv_heads", "length", "kv")
        specs = (mesh_axes(heads), mesh_axes(keys), mesh_axes(keys), mesh_axes(("batch", "length")))
        out_BHTK = sharded_call(run, specs, mesh_axes(heads))(q, k, v, segments_BT)
        return jnp.swapaxes(out_BHTK, 1, 2).astype(policy.dtype)


def _splash(block, interpret, causal, softcap, q_BHTK, k_BNTK, v_BNTK, segments_BT):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, length = q_BHTK.shape[1:3]
    one = (splash.CausalMask if causal else splash.FullMask)((length, length))
    size = next(b for b in range(min(block, length), 0, -128) if length % b == 0)
    sizes = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )
    kernel = splash.make_splash_mha(
        mask=splash.MultiHeadMask([one] * heads),
        block_sizes=sizes,
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    groups = heads // k_BNTK.shape[1]
    k, v = (jnp.repeat(x, groups, axis=1) for x in (k_BNTK, v_BNTK))
    return jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(s, s)))(q_BHTK, k, v, segments_BT)


def attend(q_BTHK, k_BSNK, v_BSNK, allowed, *, policy: Policy, softcap=None, dropout=None) -> jax.Array:
    """Scaled dot-product attention with grouped heads; scores and softmax in float32.

    Args:
        allowed: boolean, broadcastable to (B, 1, T, S), or None.
        softcap: c gives c tanh(scores / c) (Gemma 2, arXiv:2408.00118, section 2).
        dropout: (rate, key) drops attention weights.

    Returns:
        (B, T, H, K) in the compute dtype.
    """
    B, T, H, K = q_BTHK.shape
    N = k_BSNK.shape[2]
    # Query heads that share a key head become more rows of the same product.
    q_BNRK = jnp.swapaxes(q_BTHK * K**-0.5, 1, 2).reshape(B, N, H // N * T, K)
    q, k, v = (policy.operand(x) for x in (q_BNRK, jnp.swapaxes(k_BSNK, 1, 2), jnp.swapaxes(v_BSNK, 1, 2)))
    if allowed is not None and H != N:
        allowed = jnp.tile(allowed, (1, 1, H // N, 1))
    if softcap is None and dropout is None:
        out_BNRK: jax.Array = _attend(q, k, v, allowed, policy)  # pyright: ignore[reportAssignmentType]
    else:
        scores = policy.dot(q, k, SCORES)
        if softcap is not None:
            scores = softcap * jnp.tanh(scores / softcap)
        weights = jax.nn.softmax(_masked(scores, allowed), axis=-1)
        if dropout is not None:
            weights = _drop(weights, *dropout)
        out_BNRK = policy.dot(weights, v, MIX)
    return jnp.swapaxes(out_BNRK.reshape(B, H, T, K), 1, 2).astype(policy.dtype)


def _masked(scores, allowed):
    return scores if allowed is None else jnp.where(allowed, scores, MASKED)


def _drop(x, rate, key):
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BNRK, k_BNSK, v_BNSK, allowed, policy):
    """softmax(q k^T) v; the backward pass takes the row term from the output (R x K), not the weights (R x S)."""
    return _attend_fwd(q_BNRK, k_BNSK, v_BNSK, allowed, policy)[0]


def _attend_fwd(q, k, v, allowed, policy):
    weights = _masked(policy.dot(q, k, SCORES), allowed)
    weights = jnp.exp(weights - weights.max(axis=-1, keepdims=True))
    weights = weights * (1.0 / weights.sum(axis=-1, keepdims=True))
    weights = weights.astype(policy.operand_dtype)
    out = policy.dot(weights, v, MIX)
    return out, (q, k, v, weights, out)


def _attend_bwd(policy, residuals, d_out):
    q, k, v, weights, out = residuals
    row = (d_out * out).sum(axis=-1, keepdims=True)
    d_out = policy.operand(d_out)
    d_v = policy.dot(weights, d_out, SPREAD)
    d_weights = policy.dot(d_out, v, SCORES)
    d_scores = weights.astype(jnp.float32) * (d_weights - row)
    d_q = policy.dot(d_scores, k, MIX)
    d_k = policy.dot(d_scores, q, SPREAD)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_attend_fwd, _attend_bwd)


class MultiHeadAttention(nn.Module):
    """Self-attention over `num_heads` heads, with `num_kv_heads` <= num_heads shared keys and values.

    Vaswani et al. 2017, section 3.2.2; grouped heads: Ainslie et al. 2023, arXiv:2305.13245.
    Parameters: `query` (D, H, K), `key` and `value` (D, N, K), `out` (H, K, D).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    kernel: Any
    positions: Any
    policy: Policy
    use_bias: bool = True
    qk_norm: Any = None
    softcap: float | None = None
    dropout_rate: float = 0.0
    out_init: Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, x_BTD, mask: Mask, positions_BT, *, cache=None, deterministic: bool = True):
        """Returns (y_BTD, cache). `cache` is a pair (k, v) of shape (B, N, S, K) to write at `mask.offset`."""

        def heads(name, count, axis):
            axes = ("embed", axis, "kv")
            return Linear((count, self.head_dim), axes, self.policy, use_bias=self.use_bias, name=name)(x_BTD)

        q_BTHK = heads("query", self.num_heads, "heads")
        k_BTNK = heads("key", self.num_kv_heads, "kv_heads")
        v_BTNK = heads("value", self.num_kv_heads, "kv_heads")
        if self.qk_norm is not None:
            q_BTHK = self.qk_norm.module(self.policy, name="query_norm")(q_BTHK)
            k_BTNK = self.qk_norm.module(self.policy, name="key_norm")(k_BTNK)
        q_BTHK = self.positions.rotate(q_BTHK, positions_BT)
        k_BTNK = self.positions.rotate(k_BTNK, positions_BT)
        if cache is not None:
            cache = tuple(_write(c, x, mask.offset) for c, x in zip(cache, (k_BTNK, v_BTNK), strict=True))
            k_BTNK, v_BTNK = (jnp.swapaxes(c, 1, 2) for c in cache)
        dropout = None
        if self.dropout_rate and not deterministic:
            dropout = (self.dropout_rate, self.make_rng("dropout"))
        kernel = functools.partial(self.kernel, policy=self.policy, softcap=self.softcap, dropout=dropout)
        out_BTHK = kernel(q_BTHK, k_BTNK, v_BTNK, mask)
        out = Linear(
            (x_BTD.shape[-1],),
            ("heads", "kv", "embed"),
            self.policy,
            num_in=2,
            use_bias=self.use_bias,
            kernel_init=self.out_init,
            name="out",
        )
        return out(out_BTHK), cache


def _write(cache_BNSK, new_BTNK, offset):
    new_BNTK = jnp.swapaxes(new_BTNK, 1, 2).astype(cache_BNSK.dtype)
    return lax.dynamic_update_slice(cache_BNSK, new_BNTK, (0, 0, offset, 0))
