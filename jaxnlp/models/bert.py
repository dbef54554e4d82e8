"""BERT: a bidirectional Transformer encoder with heads for masked language modelling and next-sentence prediction.

Devlin et al. 2019, arXiv:1810.04805. The defaults are BERT-base. RoBERTa (Liu et al. 2019, arXiv:1907.11692) and
sentence encoders are the same model with another config: see `roberta`.

Shape legend: B batch, T length, M predicted positions, D model, H heads, K head size, F feed-forward, V vocabulary.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn import attention, checks, kernels, mlp, norms, positions, remat
from jaxnlp.nn.kernels import AttentionKernel
from jaxnlp.nn.linear import Embed, Linear
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.mlp import ACTIVATIONS, FeedForward
from jaxnlp.nn.model_config import Kind, ModelConfig
from jaxnlp.nn.norms import Norm
from jaxnlp.nn.partitioning import constrain, parameter
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.positions import PositionEncoding
from jaxnlp.nn.stack import stack

HEADS = ("masked_lm", "next_sentence", "pooler")
INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(kw_only=True)
class BertConfig(ModelConfig):
    """Sizes and components of a BERT. Sizes are numbers of units, rates are probabilities.

    vocab_size: None means the tokenizer's.
    num_types: number of token types (sentence A and B).
    mlp_dim: None means 4 embed_dim.
    heads: pretraining heads on the encoder: "masked_lm" (its output map is the embedding), "next_sentence" (includes
        the pooler), "pooler"; (): the encoder alone.
    norm_position: "post" (BERT) or "pre".
    remat, scan_layers: as in `GPTConfig`.
    """

    kind: ClassVar[Kind] = "encoder"
    vocab_size: int | None = None
    max_length: int = 512
    num_types: int = 2
    num_layers: int = 12
    num_heads: int = 12
    embed_dim: int = 768
    head_dim: int | None = None
    mlp_dim: int | None = None
    positions: PositionEncoding = dataclasses.field(default_factory=positions.Learned)
    norm: Norm = dataclasses.field(default_factory=lambda: norms.LayerNorm(epsilon=1e-12))
    norm_position: str = "post"
    mlp: FeedForward = dataclasses.field(default_factory=lambda: mlp.MLP(activation="gelu"))
    attention: AttentionKernel = dataclasses.field(default_factory=kernels.Einsum)
    heads: tuple[str, ...] = ("masked_lm", "next_sentence")
    dropout_rate: float = 0.1
    remat: object = "none"  # a policy's name or a Remat; typed so that flags can set it
    scan_layers: bool = False
    policy: Policy = dataclasses.field(default_factory=Policy)

    def check(self) -> None:
        """Raises FieldError naming the first field whose value cannot work."""
        sizes = ("vocab_size", "max_length", "num_types", "num_layers", "num_heads", "embed_dim", "head_dim", "mlp_dim")
        checks.positive(self, *sizes)
        checks.heads(self)
        checks.one_of(self, "norm_position", ("pre", "post"))
        remat.check(self)
        checks.rates(self, "dropout_rate")
        checks.components(self)
        for head in self.heads:
            if head not in HEADS:
                raise FieldError("heads", head, f"expected one of {', '.join(HEADS)}")

    @property
    def hidden_dim(self) -> int:
        return self.mlp_dim or 4 * self.embed_dim

    @property
    def length_limit(self) -> int | None:
        """The longest sequence that the model can read; None: no limit."""
        return self.max_length if self.positions.bounded else None

    def build(self) -> "Bert":
        return Bert(self)

    def flops_per_token(self, length: int, predicted_fraction: float = 1.0) -> float:
        """Floating-point operations of one training step per token, counted as in `GPTConfig`. predicted_fraction:
        share of positions that go through the masked-word head."""
        D, F, P = self.embed_dim, self.hidden_dim, self.num_heads * self.key_dim
        layer = 8 * D * P + 4 * length * P + (6 if self.mlp.gated else 4) * D * F
        assert self.vocab_size is not None
        head = predicted_fraction * 2 * D * (D + self.vocab_size) if "masked_lm" in self.heads else 0.0
        return 3.0 * (self.num_layers * layer + head)


def roberta(**changes: Any) -> BertConfig:
    """RoBERTa-base: one token type, no next-sentence head, epsilon 1e-5, and positions from row 2 of the table."""
    fields: dict[str, Any] = {
        "vocab_size": 50265,
        "num_types": 1,
        "positions": positions.Learned(first=2),
        "norm": norms.LayerNorm(epsilon=1e-5),
        "heads": ("masked_lm",),
    }
    return BertConfig(**{**fields, **changes})


class Bert(nn.Module):
    """Computes the states of tokens and the results of the heads.

    Parameters: `embed`, `types`, `positions`, `embed_norm`, `block_i`; `pooler` (D, D); `masked_lm` with `dense`,
    `norm` and `bias` (V,); `next_sentence` (D, 2).
    """

    config: BertConfig

    @nn.compact
    def __call__(
        self,
        tokens_BT,
        *,
        token_type_ids=None,
        segment_ids=None,
        positions=None,
        masked_positions=None,
        deterministic: bool = True,
    ):
        """A dict of the states and the heads' results. Under `jit`, unused results are not computed.

        Args:
            tokens_BT: integer ids.
            token_type_ids: (B, T) integers below num_types; None: all 0.
            segment_ids: (B, T) integers; attention is restricted to equal ids, and 0 is padding. None: one segment.
            positions: (B, T), position of each token; None: 0, 1, 2, ...
            masked_positions: (B, M), positions whose words the masked-word head predicts; None: all T.
            deterministic: False applies dropout, which needs the "dropout" key.

        Returns:
            hidden: last states, (B, T, D).
            pooled: with the pooler, its output for the first token, (B, D).
            masked_lm, next_sentence: with these heads, logits (B, M, V) and (B, 2) in float32.
        """
        c = self.config
        B, T = tokens_BT.shape
        c.check_length(T)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(T), (B, T))
        token_type_ids = jnp.zeros((B, T), jnp.int32) if token_type_ids is None else token_type_ids
        assert c.vocab_size is not None, "vocab_size is resolved before a model is built"
        embed = Embed(c.vocab_size, c.embed_dim, c.policy, name="embed")
        kinds = Embed(c.num_types, c.embed_dim, c.policy, axes=("types", "embed"), name="types")
        x_BTD = embed(tokens_BT) + kinds(token_type_ids)
        vectors = c.positions.build(c.max_length, c.embed_dim, c.policy, name="positions")
        if vectors is not None:
            x_BTD = x_BTD + vectors(positions)
        if c.norm_position == "post":
            x_BTD = c.norm.build(c.policy, name="embed_norm")(x_BTD)
        x_BTD = constrain(nn.Dropout(c.dropout_rate)(x_BTD, deterministic), "batch", "residual", "activation")
        self.sow("intermediates", "hidden", x_BTD)
        bias = c.positions.bias(c.num_heads, c.policy, name="position_bias")
        if bias is not None:
            bias = bias(jnp.arange(T), jnp.arange(T))
        mask = Mask(causal=False, query_segments_BT=segment_ids, key_segments_BS=segment_ids)
        x_BTD, _ = stack(Block, c, x_BTD, None, mask, positions, bias, deterministic)
        if c.norm_position == "pre":
            x_BTD = c.norm.build(c.policy, name="norm")(x_BTD)
        return self.outputs(x_BTD, embed, masked_positions, deterministic)

    def outputs(self, x_BTD, embed: Embed, masked_positions, deterministic) -> dict[str, jax.Array]:
        """Results of the heads."""
        c = self.config
        out = {"hidden": x_BTD}
        if "next_sentence" in c.heads or "pooler" in c.heads:
            pooler = Linear((c.embed_dim,), ("embed", "embed_out"), c.policy, kernel_init=INIT, name="pooler")
            out["pooled"] = jnp.tanh(pooler(x_BTD[:, 0]))
        if "next_sentence" in c.heads:
            x_BD = nn.Dropout(c.dropout_rate)(out["pooled"], deterministic)
            head = Linear((2,), ("embed", "classes"), c.policy, kernel_init=INIT, dtype="float32", name="next_sentence")
            out["next_sentence"] = head(x_BD)
        if "masked_lm" in c.heads:
            x_BMD = (
                x_BTD if masked_positions is None else jnp.take_along_axis(x_BTD, masked_positions[..., None], axis=1)
            )
            out["masked_lm"] = MaskedWords(c, name="masked_lm")(x_BMD, embed)
        return out


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each with a residual connection."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BTD, cache, mask, positions, bias, deterministic):
        c = self.config
        attend = attention.MultiHeadAttention(
            c.num_heads,
            c.num_heads,
            c.key_dim,
            c.attention,
            c.positions,
            c.policy,
            dropout_rate=c.dropout_rate,
            name="attention",
        )
        feed = c.mlp.build(
            hidden=c.hidden_dim, dim=c.embed_dim, use_bias=True, out_init=INIT, policy=c.policy, name="mlp"
        )
        norm_1, norm_2 = (c.norm.build(c.policy, name=name) for name in ("attention_norm", "mlp_norm"))
        drop = lambda x: nn.Dropout(c.dropout_rate)(x, deterministic)
        self_attend = lambda x: attend(x, mask, positions, bias=bias, deterministic=deterministic)[0]
        if c.norm_position == "pre":
            x_BTD = x_BTD + drop(self_attend(norm_1(x_BTD)))
            x_BTD = x_BTD + drop(feed(norm_2(x_BTD)))
        else:
            x_BTD = norm_1(x_BTD + drop(self_attend(x_BTD)))
            x_BTD = norm_2(x_BTD + drop(feed(x_BTD)))
        self.sow("intermediates", "hidden", x_BTD)
        return constrain(x_BTD, "batch", "residual", "activation"), cache


class MaskedWords(nn.Module):
    """norm(act(W x + b)) E^T + bias, where E is the embedding. Parameters: `dense` (D, D), `norm`, `bias` (V,)."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BMD, embed: Embed) -> jax.Array:
        c = self.config
        assert c.vocab_size is not None
        dense = Linear((c.embed_dim,), ("embed", "embed_out"), c.policy, kernel_init=INIT, name="dense")
        x_BMD = c.norm.build(c.policy, name="norm")(ACTIVATIONS[c.mlp.activation](dense(x_BMD)))
        bias = parameter(self, "bias", nn.initializers.zeros, ("vocab",), (c.vocab_size,), c.policy.param_dtype)
        return embed.logits(x_BMD) + bias.astype(jnp.float32)
