"""T5: an encoder-decoder with relative positions, RMSNorm before each sublayer, and no biases.

Raffel et al. 2020, arXiv:1910.10683. The defaults are the small model of version 1.1, with a gated feed-forward layer
and a separate output matrix; `t5_v1_0` returns the config of the paper's model.

Shape legend: B batch, S input length, T output length, D model, H heads, N key and value heads, K head size,
F feed-forward, V vocabulary.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn import attention, checks, kernels, mlp, norms, remat
from jaxnlp.nn.decoder_inputs import cross_keys_values, cross_mask, decoder_inputs, encoder_segments
from jaxnlp.nn.kernels import AttentionKernel
from jaxnlp.nn.linear import Embed, Linear
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.mlp import FeedForward
from jaxnlp.nn.model_config import Kind, ModelConfig
from jaxnlp.nn.norms import Norm
from jaxnlp.nn.partitioning import constrain
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.positions import PositionEncoding, RelativeBuckets
from jaxnlp.nn.stack import attach_cross_cache, detach_cross_cache, empty_cache, stack


@dataclasses.dataclass(kw_only=True)
class T5Config(ModelConfig):
    """Sizes and components of a T5. Sizes are numbers of units, rates are probabilities.

    vocab_size: size of the vocabulary, which inputs and outputs share; None: the tokenizer's.
    num_layers: layers of the encoder. num_decoder_layers: None means num_layers.
    head_dim: num_heads * head_dim need not equal embed_dim.
    positions: positions of the encoder; the decoder has the same, unidirectional.
    tie_embeddings: the output map is the embedding (version 1.0).
    scale_logits: multiply the input of the output map by embed_dim^-0.5 (version 1.0).
    remat, scan_layers: see `nn/stack.py`.
    """

    kind: ClassVar[Kind] = "encoder-decoder"
    vocab_size: int | None = None
    num_layers: int = 8
    num_decoder_layers: int | None = None
    num_heads: int = 6
    embed_dim: int = 512
    head_dim: int = 64
    mlp_dim: int = 1024
    positions: PositionEncoding = dataclasses.field(default_factory=lambda: RelativeBuckets(bidirectional=True))
    norm: Norm = dataclasses.field(default_factory=norms.RMSNorm)
    mlp: FeedForward = dataclasses.field(default_factory=lambda: mlp.GatedMLP(activation="gelu_tanh"))
    attention: AttentionKernel = dataclasses.field(default_factory=kernels.Einsum)
    tie_embeddings: bool = False
    scale_logits: bool = False
    dropout_rate: float = 0.1
    remat: object = "none"  # a policy's name or a Remat; typed so that flags can set it
    scan_layers: bool = False
    policy: Policy = dataclasses.field(default_factory=Policy)

    def check(self) -> None:
        """Raises FieldError naming the first field whose value cannot work."""
        sizes = ("vocab_size", "num_layers", "num_decoder_layers", "num_heads", "embed_dim", "head_dim", "mlp_dim")
        checks.positive(self, *sizes)
        remat.check(self)
        checks.rates(self, "dropout_rate")
        checks.components(self)
        if self.positions.bounded:
            raise FieldError(
                "positions", checks.name(self.positions), "T5 has no position table; use RelativeBuckets()"
            )

    @property
    def decoder(self) -> "T5Config":
        """The decoder's config: `num_layers` is its number of layers, and its positions are unidirectional."""
        unidirectional = self.positions
        if isinstance(unidirectional, RelativeBuckets):
            unidirectional = dataclasses.replace(unidirectional, bidirectional=False)
        return dataclasses.replace(
            self, num_layers=self.num_decoder_layers or self.num_layers, positions=unidirectional
        )

    def build(self) -> "T5":
        return T5(self)

    def example_inputs(self, batch: int, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Example arguments of the module: inputs (B, S) and tokens (B, T)."""
        return (jax.ShapeDtypeStruct((batch, length), jnp.int32),) * 2

    def flops_per_token(self, length: int, predicted_fraction: float = 1.0) -> float:
        """Floating-point operations of one training step per input token, counted as in `GPTConfig`.

        Args:
            length: length of the inputs. predicted_fraction: number of output tokens per input token.
        """
        D, P = self.embed_dim, self.num_heads * self.head_dim
        feed = (6 if self.mlp.gated else 4) * D * self.mlp_dim
        encoder = self.num_layers * (8 * D * P + 4 * length * P + feed)
        decoder = self.decoder.num_layers * (12 * D * P + 4 * (predicted_fraction + 1) * length * P + feed)
        cross = self.decoder.num_layers * 4 * D * P  # the encoder's keys and values, once for each layer
        assert self.vocab_size is not None
        return 3.0 * (encoder + cross + predicted_fraction * (decoder + 2 * D * self.vocab_size))

    def init_cache(self, batch: int, length: int) -> dict[str, Any]:
        """An empty key-value cache for `length` positions of the decoder (`nn/stack.py`).

        The first call with the cache must also pass the inputs. The returned cache then holds their keys and
        values: `cross`, a (k, v) pair for each layer, each (B, N, S, K), and `input_segments` (B, S).
        """
        return empty_cache(self.decoder, self.num_heads, self.head_dim, self.policy, batch, length)


def t5_v1_0(**changes: Any) -> T5Config:
    """The paper's T5: ReLU, 4 embed_dim hidden units, one matrix for embeddings and output. Default: T5-small."""
    fields: dict[str, Any] = {"num_layers": 6, "num_heads": 8, "mlp_dim": 2048, "mlp": mlp.MLP(activation="relu")}
    return T5Config(**{**fields, "tie_embeddings": True, "scale_logits": True, **changes})


class T5(nn.Module):
    """Computes the logits of the next output token from input and output tokens.

    Parameters: `embed`, `encoder` and `decoder` (each `block_i`, `position_bias`, `norm`), and `head` unless tied.
    """

    config: T5Config

    def setup(self):
        c = self.config
        assert c.vocab_size is not None, "vocab_size is resolved before a model is built"
        self.embed = Embed(c.vocab_size, c.embed_dim, c.policy, embedding_init=nn.initializers.normal(1.0))
        self.encoder, self.decoder = Encoder(c), Decoder(c.decoder)
        if not c.tie_embeddings:
            axes, init = ("embed", "vocab"), nn.initializers.normal(c.embed_dim**-0.5)
            self.head = Linear((c.vocab_size,), axes, c.policy, use_bias=False, kernel_init=init, dtype="float32")

    def __call__(
        self,
        inputs_BS,
        tokens_BT,
        *,
        input_segments=None,
        segment_ids=None,
        positions=None,
        cache=None,
        logits_to_keep: int | None = None,
        deterministic: bool = True,
    ):
        """Logits of the output token after each position.

        Args:
            inputs_BS: integer ids of the input; None if the cache already holds the encoder's keys and values.
            tokens_BT: integer ids of the output so far.
            input_segments: (B, S) integers; attention is restricted to equal ids, and 0 is padding. None: one segment.
            segment_ids: (B, T) likewise; an output token attends to the inputs of its own segment.
            positions: (B, T), position of each output token, for rotary positions; None: 0, 1, 2, ...
            cache: from `T5Config.init_cache`, to continue an output.
            logits_to_keep: return only the logits of the last `logits_to_keep` positions; None: all.
            deterministic: False applies dropout, which needs the "dropout" key.

        Returns:
            logits_BTV in float32; with a cache, (logits_BTV, cache).
        """
        c = self.config
        memory_BSD = None
        if inputs_BS is not None:
            memory_BSD = self.encode(inputs_BS, input_segments=input_segments, deterministic=deterministic)
        input_segments = encoder_segments(inputs_BS, input_segments, cache)
        embedded_BTD = self.embed(tokens_BT)
        x_BTD, cache = self.decoder(
            embedded_BTD, memory_BSD, input_segments, segment_ids, positions, cache, deterministic
        )
        if logits_to_keep is not None:
            x_BTD = x_BTD[:, -logits_to_keep:]
        if c.scale_logits:
            x_BTD = x_BTD * c.embed_dim**-0.5
        logits_BTV = self.embed.logits(x_BTD) if c.tie_embeddings else self.head(x_BTD)
        return logits_BTV if cache is None else (logits_BTV, cache)

    def encode(self, inputs_BS, *, input_segments=None, deterministic: bool = True) -> jax.Array:
        """The encoder's states for the inputs, (B, S, D)."""
        return self.encoder(self.embed(inputs_BS), input_segments, deterministic)


class Encoder(nn.Module):
    """Computes the encoder's states from embedded inputs."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BSD, segments_BS, deterministic):
        c, (B, S, _) = self.config, x_BSD.shape
        places = jnp.arange(S)
        bias = c.positions.bias(c.num_heads, c.policy, name="position_bias")
        bias = None if bias is None else bias(places, places)
        mask = Mask(causal=False, query_segments_BT=segments_BS, key_segments_BS=segments_BS)
        x_BSD = dropped(c, x_BSD, deterministic)
        positions = jnp.broadcast_to(places, (B, S))
        x_BSD, _ = stack(EncoderBlock, c, x_BSD, None, mask, positions, bias, deterministic)
        return dropped(c, c.norm.build(c.policy, name="norm")(x_BSD), deterministic)


class Decoder(nn.Module):
    """Computes the states for the output map from embedded outputs and the encoder's states, or a cache of their keys
    and values."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BTD, memory_BSD, input_segments, segment_ids, positions, cache, deterministic):
        c, layers = self.config, None
        inputs = decoder_inputs(x_BTD.shape[:2], segment_ids, positions, cache)
        if cache is not None:
            layers = attach_cross_cache(inputs.layers, cache.get("cross") if memory_BSD is None else None, c)
        bias = inputs.bias(c.positions.bias(c.num_heads, c.policy, name="position_bias"))
        masks = (inputs.mask, cross_mask(inputs, input_segments))
        shared = (memory_BSD, *masks, inputs.positions_BT, bias, deterministic)
        x_BTD, layers = stack(DecoderBlock, c, dropped(c, x_BTD, deterministic), layers, *shared)
        x_BTD = dropped(c, c.norm.build(c.policy, name="norm")(x_BTD), deterministic)
        if cache is None:
            return x_BTD, None
        layers, cross = detach_cross_cache(layers, c)
        return x_BTD, {**inputs.next_cache(layers), "cross": cross, "input_segments": input_segments}


def dropped(c: T5Config, x_BTD, deterministic) -> jax.Array:
    return constrain(nn.Dropout(c.dropout_rate)(x_BTD, deterministic), "batch", "residual", "activation")


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BSD, cache, mask, positions, bias, deterministic):
        c = self.config
        attend, feed = multi_head_attention(c, "attention"), feed_forward(c)
        normed = c.norm.build(c.policy, name="attention_norm")(x_BSD)
        y_BSD, _ = attend(normed, mask, positions, bias=bias, deterministic=deterministic)
        x_BSD = x_BSD + dropped(c, y_BSD, deterministic)
        x_BSD = x_BSD + dropped(c, feed(c.norm.build(c.policy, name="mlp_norm")(x_BSD)), deterministic)
        self.sow("intermediates", "hidden", x_BSD)
        return x_BSD, cache


class DecoderBlock(nn.Module):
    """`EncoderBlock` with cross-attention, without positions, between self-attention and the feed-forward layer."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BTD, cache, memory_BSD, mask, across, positions, bias, deterministic):
        c = self.config
        self_cache, cross = (None, None) if cache is None else cache
        attend, cross_attend = (multi_head_attention(c, name) for name in ("attention", "cross_attention"))
        feed = feed_forward(c)
        normed = c.norm.build(c.policy, name="attention_norm")(x_BTD)
        y_BTD, self_cache = attend(normed, mask, positions, cache=self_cache, bias=bias, deterministic=deterministic)
        x_BTD = x_BTD + dropped(c, y_BTD, deterministic)
        pair, cross = cross_keys_values(cross_attend, memory_BSD, cross)
        normed = c.norm.build(c.policy, name="cross_attention_norm")(x_BTD)
        y_BTD, _ = cross_attend(normed, across, keys_values=pair, deterministic=deterministic)
        x_BTD = x_BTD + dropped(c, y_BTD, deterministic)
        x_BTD = x_BTD + dropped(c, feed(c.norm.build(c.policy, name="mlp_norm")(x_BTD)), deterministic)
        self.sow("intermediates", "hidden", x_BTD)
        return x_BTD, None if cache is None else (self_cache, cross)


def multi_head_attention(c: T5Config, name: str) -> attention.MultiHeadAttention:
    """T5's attention: the scores are not scaled, and the query kernel is initialised smaller instead."""
    normal = nn.initializers.normal
    return attention.MultiHeadAttention(
        c.num_heads,
        c.num_heads,
        c.head_dim,
        c.attention,
        c.positions,
        c.policy,
        use_bias=False,
        scale=1.0,
        dropout_rate=c.dropout_rate,
        query_init=normal((c.embed_dim * c.head_dim) ** -0.5),
        key_value_init=normal(c.embed_dim**-0.5),
        out_init=normal((c.num_heads * c.head_dim) ** -0.5),
        name=name,
    )


def feed_forward(c: T5Config) -> Any:
    return c.mlp.build(
        hidden=c.mlp_dim,
        dim=c.embed_dim,
        use_bias=False,
        in_init=nn.initializers.normal(c.embed_dim**-0.5),
        out_init=nn.initializers.normal(c.mlp_dim**-0.5),
        policy=c.policy,
        name="mlp",
    )
