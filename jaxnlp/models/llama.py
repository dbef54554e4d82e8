"""Llama: a decoder-only Transformer with RMSNorm, SwiGLU, rotary positions and grouped-query attention.

Touvron et al. 2023 (arXiv:2302.13971, arXiv:2307.09288), Grattafiori et al. 2024 (arXiv:2407.21783). The
defaults are Llama-2 7B's. Mistral, Qwen2 and Qwen3 are the same model with another config: a sliding window, biases of
queries, keys and values, and norms of queries and keys.

Shape legend: B batch, T length, S cache length, D model, H query heads, N key and value
heads, K head size, V vocabulary.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn

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

INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(kw_only=True)
class LlamaConfig(ModelConfig):
    """Sizes and components of a Llama. Sizes are numbers of units.

    vocab_size: None means the tokenizer's.
    num_kv_heads: None means num_heads. With fewer, groups of query heads share keys and values.
    head_dim: None means embed_dim // num_heads.
    qk_norm: a norm for queries and keys (Qwen3), or None.
    window: number of positions that each position attends to, itself and those before it (Mistral); None: all.
    qkv_bias, out_bias: whether the linear maps of attention have biases (Qwen2: qkv_bias).
    remat, scan_layers: see `nn/stack.py`.
    """

    kind: ClassVar[Kind] = "decoder"
    vocab_size: int | None = None
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int | None = None
    embed_dim: int = 4096
    head_dim: int | None = None
    mlp_dim: int = 11008
    positions: PositionEncoding = dataclasses.field(default_factory=positions.Rotary)
    norm: Norm = dataclasses.field(default_factory=lambda: norms.RMSNorm(epsilon=1e-5))
    mlp: FeedForward = dataclasses.field(default_factory=mlp.GatedMLP)
    attention: AttentionKernel = dataclasses.field(default_factory=kernels.Einsum)
    qk_norm: Norm | None = None
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    tie_embeddings: bool = False
    remat: object = "none"  # a policy's name or a Remat; typed so that flags can set it
    scan_layers: bool = False
    policy: Policy = dataclasses.field(default_factory=Policy)
    dropout_rate = 0.0  # Llama has no dropout

    def check(self) -> None:
        """Raises FieldError naming the first field whose value cannot work."""
        sizes = ("vocab_size", "num_layers", "num_heads", "num_kv_heads", "embed_dim", "head_dim", "mlp_dim", "window")
        checks.positive(self, *sizes)
        checks.heads(self)
        remat.check(self)
        checks.components(self)
        if self.num_heads % self.kv_heads:
            raise FieldError("num_kv_heads", self.num_kv_heads, f"does not divide num_heads={self.num_heads}")
        if isinstance(self.positions, positions.Rotary) and self.key_dim % 2:
            raise FieldError("head_dim", self.key_dim, "expected an even number with Rotary() positions")
        if self.positions.bounded:
            raise FieldError("positions", checks.name(self.positions), "Llama has no position table; use Rotary()")

    def build(self) -> "Llama":
        return Llama(self)

    def flops_per_token(self, length: int, predicted_fraction: float = 1.0) -> float:
        """Floating-point operations of one training step per token, counted as in `GPTConfig`."""
        D, H, N, K = self.embed_dim, self.num_heads, self.kv_heads, self.key_dim
        attend = 2 * D * K * (H + 2 * N) + 2 * H * K * D + 4 * length * H * K
        feed_forward = (6 if self.mlp.gated else 4) * D * self.mlp_dim
        assert self.vocab_size is not None
        return 3.0 * (self.num_layers * (attend + feed_forward) + predicted_fraction * 2 * D * self.vocab_size)

    def init_cache(self, batch: int, length: int) -> dict[str, Any]:
        """An empty key-value cache for `length` positions (`nn/stack.py`)."""
        return empty_cache(self, self.kv_heads, self.key_dim, self.policy, batch, length)


class Llama(nn.Module):
    """Computes next-token logits from tokens. Parameters: `embed`, `block_i`, `norm`, and `head` unless tied."""

    config: LlamaConfig

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
            segment_ids: (B, T) integers; attention is restricted to equal ids, and 0 is padding. None: one segment.
            positions: (B, T), position of each token in its document; None: 0, 1, 2, ...
            cache: from `LlamaConfig.init_cache`, to continue a sequence; `segment_ids` then mark which of the new
                tokens are padding.
            logits_to_keep: return only the logits of the last `logits_to_keep` positions; None: all.
            with_hidden: also return the states that the logits are computed from, after the last norm.
            deterministic: ignored, since there is no dropout; models share one signature.

        Returns:
            out: logits_BTV in float32, or (logits_BTV, hidden_BTD) with `with_hidden`; with a cache, (out, cache).
        """
        c = self.config
        inputs = decoder_inputs(tokens_BT.shape, segment_ids, positions, cache, c.window)
        assert c.vocab_size is not None, "vocab_size is resolved before a model is built"
        embed = Embed(c.vocab_size, c.embed_dim, c.policy, name="embed")
        x_BTD = constrain(embed(tokens_BT), "batch", "residual", "activation")
        bias = inputs.bias(c.positions.bias(c.num_heads, c.policy, name="position_bias"))
        shared = (inputs.mask, inputs.positions_BT, bias, deterministic)
        x_BTD, layers = stack(Block, c, x_BTD, inputs.layers, *shared)
        x_BTD = c.norm.build(c.policy, name="norm")(x_BTD if logits_to_keep is None else x_BTD[:, -logits_to_keep:])
        if c.tie_embeddings:
            logits_BTV = embed.logits(x_BTD)
        else:
            head = Linear((c.vocab_size,), ("embed", "vocab"), c.policy, use_bias=False, dtype="float32", name="head")
            logits_BTV = head(x_BTD)
        out = (logits_BTV, x_BTD) if with_hidden else logits_BTV
        return out if cache is None else (out, inputs.next_cache(layers))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_BTD, cache, mask, positions, bias, deterministic):
        c = self.config
        attend = attention.MultiHeadAttention(
            c.num_heads,
            c.kv_heads,
            c.key_dim,
            c.attention,
            c.positions,
            c.policy,
            use_bias=c.out_bias,
            use_qkv_bias=c.qkv_bias,
            qk_norm=c.qk_norm,
            name="attention",
        )
        feed = c.mlp.build(
            hidden=c.mlp_dim, dim=c.embed_dim, use_bias=False, out_init=INIT, policy=c.policy, name="mlp"
        )
        norm_1, norm_2 = (c.norm.build(c.policy, name=name) for name in ("attention_norm", "mlp_norm"))
        y_BTD, cache = attend(norm_1(x_BTD), mask, positions, cache=cache, bias=bias, deterministic=deterministic)
        x_BTD = x_BTD + y_BTD
        x_BTD = x_BTD + feed(norm_2(x_BTD))
        self.sow("intermediates", "hidden", x_BTD)
        return constrain(x_BTD, "batch", "residual", "activation"), cache
