"""The original Transformer: an encoder-decoder for sequence-to-sequence tasks.

Vaswani et al. 2017, arXiv:1706.03762. The defaults are the paper's base model: a norm after each sublayer,
sinusoidal positions, ReLU, and one matrix for both embeddings, which are scaled by sqrt(D), and for the output.

Shape legend: B batch, S input length, T output length, D model, H heads, N key and value heads, K head size,
F feed-forward, V vocabulary.
"""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn import attention, checks, kernels, mlp, norms, positions, remat
from jaxnlp.nn.decoder_inputs import cross_keys_values, cross_mask, decoder_inputs, encoder_segments
from jaxnlp.nn.kernels import AttentionKernel
from jaxnlp.nn.linear import Embed, Linear
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.mlp import FeedForward
from jaxnlp.nn.model_config import Kind, ModelConfig
from jaxnlp.nn.norms import Norm
from jaxnlp.nn.partitioning import constrain
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.positions import PositionEncoding
from jaxnlp.nn.stack import attach_cross_cache, detach_cross_cache, empty_cache, stack


@dataclasses.dataclass(kw_only=True)
class TransformerConfig(ModelConfig):
    """Sizes and components of a Transformer. Sizes are numbers of units, rates are probabilities.

    vocab_size: size of the vocabulary, which inputs and outputs share; None: the tokenizer's.
    max_length: length of the table of learned positions; unused with other positions.
    num_layers: layers of the encoder. num_decoder_layers: None means num_layers.
    head_dim: None means embed_dim // num_heads. mlp_dim: None means 4 embed_dim.
    norm_position: "post" (the paper) or "pre" (trains without warmup: Xiong et al. 2020, arXiv:2002.04745).
    tie_embeddings: the output map is the embedding.
    remat, scan_layers: see `nn/stack.py`.
    """

    kind: ClassVar[Kind] = "encoder-decoder"
    vocab_size: int | None = None
    max_length: int = 512
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    embed_dim: int = 512
    head_dim: int | None = None
    mlp_dim: int | None = None
    positions: PositionEncoding = dataclasses.field(default_factory=positions.Sinusoidal)
    norm: Norm = dataclasses.field(default_factory=norms.LayerNorm)
    norm_position: str = "post"
    mlp: FeedForward = dataclasses.field(default_factory=lambda: mlp.MLP(activation="relu"))
    attention: AttentionKernel = dataclasses.field(default_factory=kernels.Einsum)
    use_bias: bool = True
    tie_embeddings: bool = True
    dropout_rate: float = 0.1
    remat: object = "none"  # a policy's name or a Remat; typed so that flags can set it
    scan_layers: bool = False
    policy: Policy = dataclasses.field(default_factory=Policy)

    def check(self) -> None:
        """Raises FieldError naming the first field whose value cannot work."""
        sizes = ("vocab_size", "max_length", "num_layers", "num_decoder_layers", "num_heads", "embed_dim", "head_dim")
        checks.positive(self, *sizes, "mlp_dim")
        checks.heads(self)
        if isinstance(self.positions, positions.Sinusoidal) and self.embed_dim % 2:
            raise FieldError("embed_dim", self.embed_dim, "expected an even number with Sinusoidal() positions")
        checks.one_of(self, "norm_position", ("pre", "post"))
        remat.check(self)
        checks.rates(self, "dropout_rate")
        checks.components(self)

    @property
    def hidden_dim(self) -> int:
        return self.mlp_dim or 4 * self.embed_dim

    @property
    def length_limit(self) -> int | None:
        """The longest input or output sequence of the model; None: no limit."""
        return self.max_length if self.positions.bounded else None

    @property
    def decoder(self) -> "TransformerConfig":
        """The decoder's config: `num_layers` is its number of layers."""
        return dataclasses.replace(self, num_layers=self.num_decoder_layers or self.num_layers)

    def build(self) -> "Transformer":
        return Transformer(self)

    def example_inputs(self, batch: int, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Example arguments of the module: inputs (B, S) and tokens (B, T)."""
        return (jax.ShapeDtypeStruct((batch, length), jnp.int32),) * 2

    def flops_per_token(self, length: int, predicted_fraction: float = 1.0) -> float:
        """Floating-point operations of one training step per input token, counted as in `GPTConfig`.

        Args:
            length: length of the inputs. predicted_fraction: number of output tokens per input token.
        """
        D, P = self.embed_dim, self.num_heads * self.key_dim
        attend = lambda keys: 8 * D * P + 4 * keys * P
        feed = (6 if self.mlp.gated else 4) * D * self.hidden_dim
        encoder = self.num_layers * (attend(length) + feed)
        # The encoder's keys and values are computed once per input token; queries and mixing once per output token.
        decoder = self.decoder.num_layers * (attend(predicted_fraction * length) + feed + 4 * D * P + 4 * length * P)
        assert self.vocab_size is not None
        cross = self.decoder.num_layers * 4 * D * P
        return 3.0 * (encoder + cross + predicted_fraction * (decoder + 2 * D * self.vocab_size))

    def init_cache(self, batch: int, length: int) -> dict[str, Any]:
        """An empty key-value cache for `length` positions of the decoder (`nn/stack.py`).

        The first call with the cache must also pass the inputs. The returned cache then holds their keys and
        values: `cross`, a (k, v) pair for each layer, each (B, N, S, K), and `input_segments` (B, S).
        """
        return empty_cache(self.decoder, self.num_heads, self.key_dim, self.policy, batch, length)


class Transformer(nn.Module):
    """Computes the logits of the next output token from input and output tokens.

    Parameters: `embed`, `encoder` and `decoder` (each `block_i`, and `norm` if pre-norm), `head` unless tied; with
    learned positions `encoder/positions` and `decoder/positions`.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        assert c.vocab_size is not None, "vocab_size is resolved before a model is built"
        # Scaled by sqrt(D), the embeddings have variance 1. The variance of a tied output map's first logits is near 1.
        init = nn.initializers.normal(c.embed_dim**-0.5)
        self.embed = Embed(c.vocab_size, c.embed_dim, c.policy, embedding_init=init)
        self.encoder, self.decoder = Encoder(c), Decoder(c.decoder)
        if not c.tie_embeddings:
            self.head = Linear((c.vocab_size,), ("embed", "vocab"), c.policy, use_bias=False, dtype="float32")

    def __call__(
        self,
        inputs_BS,
        tokens_BT,
        *,
        input_segments=None,
        segment_ids=None,
        input_positions=None,
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
            input_positions, positions: (B, S), (B, T), position of each token; None: 0, 1, 2, ...
            cache: from `TransformerConfig.init_cache`, to continue an output.
            logits_to_keep: return only the logits of the last `logits_to_keep` positions; None: all.
            deterministic: False applies dropout, which needs the "dropout" key.

        Returns:
            logits_BTV in float32; with a cache, (logits_BTV, cache).
        """
        c = self.config
        memory_BSD = None
        if inputs_BS is not None:
            memory_BSD = self.encode(
                inputs_BS, input_segments=input_segments, positions=input_positions, deterministic=deterministic
            )
        input_segments = encoder_segments(inputs_BS, input_segments, cache)
        x_BTD = self.embed(tokens_BT) * math.sqrt(c.embed_dim)
        x_BTD, cache = self.decoder(x_BTD, memory_BSD, input_segments, segment_ids, positions, cache, deterministic)
        if logits_to_keep is not None:
            x_BTD = x_BTD[:, -logits_to_keep:]
        logits_BTV = self.embed.logits(x_BTD) if c.tie_embeddings else self.head(x_BTD)
        return logits_BTV if cache is None else (logits_BTV, cache)

    def encode(self, inputs_BS, *, input_segments=None, positions=None, deterministic: bool = True) -> jax.Array:
        """The encoder's states for the inputs, (B, S, D)."""
        x_BSD = self.embed(inputs_BS) * math.sqrt(self.config.embed_dim)
        return self.encoder(x_BSD, input_segments, positions, deterministic)


class Encoder(nn.Module):
    """Computes the encoder's states from embedded inputs."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BSD, segments_BS, positions, deterministic):
        c, (B, S, _) = self.config, x_BSD.shape
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(S), (B, S))
        x_BSD = add_positions(c, x_BSD, positions, deterministic)
        bias = c.positions.bias(c.num_heads, c.policy, name="position_bias")
        if bias is not None:
            bias = bias(jnp.arange(S), jnp.arange(S))
        mask = Mask(causal=False, query_segments_BT=segments_BS, key_segments_BS=segments_BS)
        x_BSD, _ = stack(EncoderBlock, c, x_BSD, None, mask, positions, bias, deterministic)
        return x_BSD if c.norm_position == "post" else c.norm.build(c.policy, name="norm")(x_BSD)


class Decoder(nn.Module):
    """Computes the states for the output map from embedded outputs and the encoder's states, or a cache of their keys
    and values."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD, memory_BSD, input_segments, segment_ids, positions, cache, deterministic):
        c, layers = self.config, None
        inputs = decoder_inputs(x_BTD.shape[:2], segment_ids, positions, cache)
        if cache is not None:
            layers = attach_cross_cache(inputs.layers, cache.get("cross") if memory_BSD is None else None, c)
        x_BTD = add_positions(c, x_BTD, inputs.positions_BT, deterministic)
        bias = inputs.bias(c.positions.bias(c.num_heads, c.policy, name="position_bias"))
        masks = (inputs.mask, cross_mask(inputs, input_segments))
        shared = (memory_BSD, *masks, inputs.positions_BT, bias, deterministic)
        x_BTD, layers = stack(DecoderBlock, c, x_BTD, layers, *shared)
        if c.norm_position == "pre":
            x_BTD = c.norm.build(c.policy, name="norm")(x_BTD)
        if cache is None:
            return x_BTD, None
        layers, cross = detach_cross_cache(layers, c)
        return x_BTD, {**inputs.next_cache(layers), "cross": cross, "input_segments": input_segments}


def add_positions(c: TransformerConfig, x_BTD, positions_BT, deterministic) -> jax.Array:
    """Embeddings plus positions, with dropout. Call it within a compact module."""
    T = x_BTD.shape[1]
    c.check_length(T)
    vectors = c.positions.build(c.max_length, c.embed_dim, c.policy, name="positions")
    if vectors is not None:
        x_BTD = x_BTD + vectors(positions_BT)
    return constrain(nn.Dropout(c.dropout_rate)(x_BTD, deterministic), "batch", "residual", "activation")


class EncoderBlock(nn.Module):
    """Self-attention and a feed-forward layer."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BSD, cache, mask, positions, bias, deterministic):
        c = self.config
        attend, feed = multi_head_attention(c, "attention"), feed_forward(c)
        self_attend = lambda x: attend(x, mask, positions, bias=bias, deterministic=deterministic)[0]
        x_BSD = residual(c, "attention_norm", self_attend, x_BSD, deterministic)
        x_BSD = residual(c, "mlp_norm", feed, x_BSD, deterministic)
        self.sow("intermediates", "hidden", x_BSD)
        return constrain(x_BSD, "batch", "residual", "activation"), cache


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention to the encoder, and a feed-forward layer."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD, cache, memory_BSD, mask, across, positions, bias, deterministic):
        c = self.config
        self_cache, cross = (None, None) if cache is None else cache
        attend, cross_attend = (multi_head_attention(c, name) for name in ("attention", "cross_attention"))
        feed = feed_forward(c)

        def self_attend(x):
            nonlocal self_cache
            y, self_cache = attend(x, mask, positions, cache=self_cache, bias=bias, deterministic=deterministic)
            return y

        x_BTD = residual(c, "attention_norm", self_attend, x_BTD, deterministic)
        pair, cross = cross_keys_values(cross_attend, memory_BSD, cross)
        attend_inputs = lambda x: cross_attend(x, across, keys_values=pair, deterministic=deterministic)[0]
        x_BTD = residual(c, "cross_attention_norm", attend_inputs, x_BTD, deterministic)
        x_BTD = residual(c, "mlp_norm", feed, x_BTD, deterministic)
        self.sow("intermediates", "hidden", x_BTD)
        x_BTD = constrain(x_BTD, "batch", "residual", "activation")
        return x_BTD, None if cache is None else (self_cache, cross)


def residual(c: TransformerConfig, norm: str, sublayer, x_BTD, deterministic) -> jax.Array:
    """norm(x + sublayer(x)), or with pre-norm x + sublayer(norm(x)), with dropout on the sublayer's output."""
    normed = c.norm.build(c.policy, name=norm)
    drop = lambda x: nn.Dropout(c.dropout_rate)(x, deterministic)
    if c.norm_position == "pre":
        return x_BTD + drop(sublayer(normed(x_BTD)))
    return normed(x_BTD + drop(sublayer(x_BTD)))


def multi_head_attention(c: TransformerConfig, name: str) -> attention.MultiHeadAttention:
    return attention.MultiHeadAttention(
        c.num_heads,
        c.num_heads,
        c.key_dim,
        c.attention,
        c.positions,
        c.policy,
        use_bias=c.use_bias,
        dropout_rate=c.dropout_rate,
        query_init=xavier,
        key_value_init=xavier,
        out_init=xavier_out,
        name=name,
    )


def feed_forward(c: TransformerConfig) -> Any:
    return c.mlp.build(
        hidden=c.hidden_dim,
        dim=c.embed_dim,
        use_bias=c.use_bias,
        in_init=xavier,
        out_init=xavier,
        policy=c.policy,
        name="mlp",
    )


def xavier(key, shape, dtype, num_in: int = 1) -> jax.Array:
    """Uniform with variance 2 / (inputs + outputs) (Glorot and Bengio 2010, equation 16)."""
    limit = math.sqrt(6 / (math.prod(shape[:num_in]) + math.prod(shape[num_in:])))
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def xavier_out(key, shape, dtype) -> jax.Array:
    """`xavier` for a kernel whose last axis is the output: (heads, head size, D)."""
    return xavier(key, shape, dtype, num_in=len(shape) - 1)
