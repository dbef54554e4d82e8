"""GPT: a decoder-only Transformer language model.

The defaults are GPT-2's (Radford et al. 2019): learned positions, LayerNorm before each sublayer, tanh GELU, biases,
one matrix for input and output embeddings. Other components are chosen in the config:
`positions=Rotary()`, `norm=RMSNorm()`, `mlp=GatedMLP()`, ...

Shape legend: B batch, T length, S cache length, D model, H query heads, N key and value
heads, K head size, V vocabulary.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn import attention, checks, kernels, mlp, norms, positions, remat
from jaxnlp.nn.decoder_inputs import decoder_inputs
from jaxnlp.nn.kernels import AttentionKernel
from jaxnlp.nn.linear import Embed, Linear
from jaxnlp.nn.mlp import FeedForward
from jaxnlp.nn.model_config import Kind, ModelConfig
from jaxnlp.nn.norms import Norm
from jaxnlp.nn.partitioning import constrain
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.positions import PositionEncoding
from jaxnlp.nn.stack import empty_cache, stack


@dataclasses.dataclass(kw_only=True)
class GPTConfig(ModelConfig):
    """Sizes and components of a GPT. Sizes are numbers of units, rates are probabilities.

    vocab_size: None means the tokenizer's.
    max_length: length of the table of learned positions; unused with other positions.
    num_kv_heads: None means num_heads. With fewer, groups of query heads share keys and values.
    head_dim: None means embed_dim // num_heads.
    mlp_dim: None means 4 embed_dim, or for a gated MLP 8/3 embed_dim rounded up to a multiple of 8.
    norm_position: "pre" (GPT-2) or "post" (the 2017 Transformer, GPT-1).
    qk_norm: a norm for queries and keys (Henry et al. 2020, arXiv:2010.04245), or None.
    window: number of positions that each position attends to, itself and those before it; None: all.
    attention_softcap, logit_softcap: c maps scores or logits x to c tanh(x / c); None: no cap.
    remat: what the backward pass recomputes: nothing ("none"), everything except linear maps ("dots"), full blocks
        ("full"), or everything except named activations: "names" saves the attention kernel's inputs and output,
        "offload" saves activations in host memory, and `Remat(save=("query",), offload=("mlp_hidden",))` selects them
        (`nn/remat.py`). XLA's CPU backend undoes rematerialisation unless the layers are scanned.
    scan_layers: stack the layers' parameters and scan over the layers. Deep models then compile in the time of one
        layer; unrolled layers run faster on a CPU.
    """

    kind: ClassVar[Kind] = "decoder"
    vocab_size: int | None = None
    max_length: int = 1024
    num_layers: int = 12
    num_heads: int = 12
    num_kv_heads: int | None = None
    embed_dim: int = 768
    head_dim: int | None = None
    mlp_dim: int | None = None
    positions: PositionEncoding = dataclasses.field(default_factory=positions.Learned)
    norm: Norm = dataclasses.field(default_factory=norms.LayerNorm)
    norm_position: str = "pre"
    mlp: FeedForward = dataclasses.field(default_factory=mlp.MLP)
    attention: AttentionKernel = dataclasses.field(default_factory=kernels.Einsum)
    qk_norm: Norm | None = None
    window: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    use_bias: bool = True
    tie_embeddings: bool = True
    dropout_rate: float = 0.0
    remat: object = "none"  # a policy's name or a Remat; typed so that flags can set it
    scan_layers: bool = False
    policy: Policy = dataclasses.field(default_factory=Policy)

    def check(self) -> None:
        """Raises FieldError naming the first field whose value cannot work."""
        checks.positive(self, "vocab_size", "max_length", "num_layers", "num_heads", "num_kv_heads", "embed_dim")
        checks.positive(self, "head_dim", "mlp_dim", "window")
        checks.heads(self)
        if self.num_heads % self.kv_heads:
            raise FieldError("num_kv_heads", self.num_kv_heads, f"does not divide num_heads={self.num_heads}")
        if isinstance(self.positions, positions.Rotary) and self.key_dim % 2:
            raise FieldError("head_dim", self.key_dim, "expected an even number with Rotary() positions")
        if isinstance(self.positions, positions.Sinusoidal) and self.embed_dim % 2:
            raise FieldError("embed_dim", self.embed_dim, "expected an even number with Sinusoidal() positions")
        checks.one_of(self, "norm_position", ("pre", "post"))
        remat.check(self)
        checks.rates(self, "dropout_rate")
        checks.components(self)
        if self.attention_softcap is not None and "softcap" not in self.attention.features:
            raise FieldError(
                "attention_softcap",
                self.attention_softcap,
                f"attention={checks.name(self.attention)} does not support a soft cap; use Einsum()",
            )
        checks.above_zero(self, "30.0", "attention_softcap", "logit_softcap")

    @property
    def hidden_dim(self) -> int:
        if self.mlp_dim is not None:
            return self.mlp_dim
        return -(-8 * self.embed_dim // 24) * 8 if self.mlp.gated else 4 * self.embed_dim

    @property
    def length_limit(self) -> int | None:
        """The longest sequence that the model can read; None: no limit."""
        return self.max_length if self.positions.bounded else None

    def build(self) -> "GPT":
        return GPT(self)

    def flops_per_token(self, length: int, predicted_fraction: float = 1.0) -> float:
        """Floating-point operations of one training step per token: three times the forward pass.

        Counts only matrix products, and attention in full although it is causal (the convention of
        Chowdhery et al. 2022, arXiv:2204.02311, appendix B). predicted_fraction: share of positions
        that go through the output map.
        """
        D, F, H, N, K = self.embed_dim, self.hidden_dim, self.num_heads, self.kv_heads, self.key_dim
        projections = 2 * D * K * (H + 2 * N) + 2 * H * K * D
        attention_ = 4 * length * H * K
        feed_forward = (6 if self.mlp.gated else 4) * D * F
        assert self.vocab_size is not None
        layers = self.num_layers * (projections + attention_ + feed_forward)
        return 3.0 * (layers + predicted_fraction * 2 * D * self.vocab_size)

    def init_cache(self, batch: int, length: int) -> dict[str, Any]:
        """An empty key-value cache for `length` positions (`nn/stack.py`)."""
        return empty_cache(self, self.kv_heads, self.key_dim, self.policy, batch, length)


class GPT(nn.Module):
    """Computes next-token logits from tokens."""

    config: GPTConfig

    @nn.compact
    def __call__(
        self,
        tokens_BT,
        *,
        segment_ids=None,
        positions=None,
        cache=None,
        logits_to_keep: int | None = None,
        with_hidden: bool = False,
        deterministic: bool = True,
    ):
        """Logits of the token after each position.

        Args:
            tokens_BT: integer ids.
            segment_ids: (B, T) integers; attention is restricted to equal ids, and 0 is padding.
                None: one segment.
            positions: (B, T), position of each token in its document; None: 0, 1, 2, ...
            cache: from `GPTConfig.init_cache`, to continue a sequence; `segment_ids` then mark which
                of the new tokens are padding.
            logits_to_keep: return only the logits of the last `logits_to_keep` positions; None: all.
            with_hidden: also return the states that the logits are computed from, after the last norm.
            deterministic: False applies dropout, which needs the "dropout" key.

        Returns:
            out: logits_BTV in float32, or (logits_BTV, hidden_BTD) with `with_hidden`; with a cache, (out, cache).
        """
        c = self.config
        c.check_length(tokens_BT.shape[1])
        inputs = decoder_inputs(tokens_BT.shape, segment_ids, positions, cache, c.window)
        assert c.vocab_size is not None, "vocab_size is resolved before a model is built"
        embed = Embed(c.vocab_size, c.embed_dim, c.policy, name="embed")
        x_BTD = embed(tokens_BT)
        vectors = c.positions.build(c.max_length, c.embed_dim, c.policy, name="positions")
        if vectors is not None:
            x_BTD = x_BTD + vectors(inputs.positions_BT)
        x_BTD = nn.Dropout(c.dropout_rate)(x_BTD, deterministic=deterministic)
        x_BTD = constrain(x_BTD, "batch", "residual", "activation")
        bias = inputs.bias(c.positions.bias(c.num_heads, c.policy, name="position_bias"))
        shared = (inputs.mask, inputs.positions_BT, bias, deterministic)
        x_BTD, layers = stack(Block, c, x_BTD, inputs.layers, *shared)
        x_BTD = x_BTD if logits_to_keep is None else x_BTD[:, -logits_to_keep:]
        if c.norm_position == "pre":
            x_BTD = c.norm.build(c.policy, name="norm")(x_BTD)
        out = (self.logits(x_BTD, embed), x_BTD) if with_hidden else self.logits(x_BTD, embed)
        return out if cache is None else (out, inputs.next_cache(layers))

    def logits(self, x_BTD, embed: Embed):
        """The output map: the embedding if `tie_embeddings`, else a separate matrix."""
        c = self.config
        if c.tie_embeddings:
            logits_BTV = embed.logits(x_BTD)
        else:
            assert c.vocab_size is not None
            axes = ("embed", "vocab")
            logits_BTV = Linear((c.vocab_size,), axes, c.policy, use_bias=False, dtype="float32", name="head")(x_BTD)
        if c.logit_softcap is not None:
            logits_BTV = c.logit_softcap * jnp.tanh(logits_BTV / c.logit_softcap)
        return logits_BTV


class Block(nn.Module):
    """Attention and a feed-forward layer, each with a residual connection."""

    config: GPTConfig

    @nn.compact
    def __call__(self, x_BTD, cache, mask, positions, bias, deterministic):
        c = self.config
        # GPT-2 scales the initial output of each residual branch by 1/sqrt(number of branches).
        out_init = nn.initializers.normal(0.02 / (2 * c.num_layers) ** 0.5)
        attend = attention.MultiHeadAttention(
            c.num_heads,
            c.kv_heads,
            c.key_dim,
            c.attention,
            c.positions,
            c.policy,
            use_bias=c.use_bias,
            qk_norm=c.qk_norm,
            softcap=c.attention_softcap,
            dropout_rate=c.dropout_rate,
            out_init=out_init,
            name="attention",
        )
        feed = c.mlp.build(
            hidden=c.hidden_dim, dim=c.embed_dim, use_bias=c.use_bias, out_init=out_init, policy=c.policy, name="mlp"
        )
        norm_1, norm_2 = (c.norm.build(c.policy, name=name) for name in ("attention_norm", "mlp_norm"))
        drop = nn.Dropout(c.dropout_rate)
        if c.norm_position == "pre":
            y_BTD, cache = attend(norm_1(x_BTD), mask, positions, cache=cache, bias=bias, deterministic=deterministic)
            x_BTD = x_BTD + drop(y_BTD, deterministic=deterministic)
            x_BTD = x_BTD + drop(feed(norm_2(x_BTD)), deterministic=deterministic)
        else:
            y_BTD, cache = attend(x_BTD, mask, positions, cache=cache, bias=bias, deterministic=deterministic)
            x_BTD = norm_1(x_BTD + drop(y_BTD, deterministic=deterministic))
            x_BTD = norm_2(x_BTD + drop(feed(x_BTD), deterministic=deterministic))
        self.sow("intermediates", "hidden", x_BTD)
        return constrain(x_BTD, "batch", "residual", "activation"), cache
