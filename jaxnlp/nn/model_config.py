"""`ModelConfig`: the interface between a model and the rest of jaxnlp, with defaults.

A model's config is a dataclass that inherits this class. It sets `kind`, defines `build` and `flops_per_token`, and
overrides other defaults as needed, by a field, an attribute or a property. jaxnlp uses nothing else of a model.
"""

import dataclasses
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from jaxnlp.errors import UserError
from jaxnlp.nn.head import Head
from jaxnlp.nn.kernels import AttentionKernel
from jaxnlp.nn.policy import Policy

Kind = Literal["decoder", "encoder", "encoder-decoder", "other"]


class _Itself:
    """An attribute whose value is the config itself. A subclass may replace it by a field of the same name."""

    def __get__(self, config: Any, owner: type | None = None) -> "ModelConfig":
        return config


class ModelTraits:
    """Default attributes of a model. A config overrides them by fields of its own.

    They are not dataclass fields here, so that a config holds and saves only the fields that its model has.

    kind: "decoder": tokens to next-token logits. "encoder": tokens to a dict with "hidden". "encoder-decoder": inputs
        and tokens to next-token logits. "other": whatever its objective reads.
    body: the config that has the layers: this one, or for a model with a head the pretrained model's.
    vocab_size: None means the tokenizer's, which replaces it before the model is built.
    embed_dim: size of the residual stream.
    num_layers: number of layers, of the encoder for an encoder-decoder; num_decoder_layers: of its decoder.
    scan_layers: whether `nn/stack.py` scans the layers; None: the model has no such stack.
    remat: rematerialisation policy (`nn/remat.py`); None: the model does not support it.
    num_heads, num_kv_heads, head_dim: sizes of attention; None: the model has none, or derives it from other sizes.
    mlp_dim: units of a feed-forward layer; None: the model has none, or derives it. hidden_dim: the derived size.
    attention: the attention kernel (`nn/kernels.py`), a field if it can be replaced; None: no attention.
    policy: dtypes; None: float32.
    num_types: number of token types that an encoder embeds (sentence A and B); 1: it takes no `token_type_ids`.
    heads: pretraining heads of an encoder, as ("masked_lm",).
    dropout_rate: dropout in training; 0.0: none.
    head: the task head on a pretrained model (`models/heads.py`); None: no head.
    """

    kind: ClassVar[Kind] = "other"
    body = _Itself()
    vocab_size: int | None = None
    embed_dim: int = 0
    num_layers: int = 0
    num_decoder_layers: int | None = None
    scan_layers: bool | None = None
    remat: object = None  # a name or a Remat; typed so that flags can set it
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    hidden_dim: int | None = None
    attention: AttentionKernel | None = None
    policy: Policy | None = None
    num_types: int = 1
    heads: tuple[str, ...] = ()
    dropout_rate: float = 0.0
    head: Head | None = None


@dataclasses.dataclass(kw_only=True)
class ModelConfig(ModelTraits):
    """Base class of every model's config."""

    def build(self) -> Any:
        """The Linen module."""
        raise TypeError(f"{type(self).__name__}: a model's config must define build(), which returns its Linen module")

    def flops_per_token(self, length: int, predicted_fraction: float = 1.0) -> float:
        """Floating-point operations of a training step per token of a sequence: three times the forward pass.

        Args:
            length: length of the sequence, or of an encoder-decoder's inputs.
            predicted_fraction: share of positions that go through the output map; for an encoder-decoder, number of
                output tokens per input token.
        """
        raise TypeError(f"{type(self).__name__}: a model's config must define flops_per_token()")

    def example_inputs(self, batch: int, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and dtypes of the module's positional arguments: tokens (B, T)."""
        return (jax.ShapeDtypeStruct((batch, length), jnp.int32),)

    def with_body(self, **changes: Any) -> Self:
        """A copy with fields of its body changed."""
        if self.body is self:
            return dataclasses.replace(self, **changes)
        return dataclasses.replace(self, body=self.body.with_body(**changes))

    @property
    def can_generate(self) -> bool:
        """Whether the model can generate text: it has `init_cache`, and its module takes `cache`."""
        return self.kind in ("decoder", "encoder-decoder")

    def init_cache(self, batch: int, length: int) -> dict[str, Any]:
        """An empty key-value cache for `length` positions (`nn/stack.py`)."""
        raise TypeError(f"{type(self).__name__}: has no init_cache(), so kind={self.kind!r} needs can_generate=False")

    @property
    def length_limit(self) -> int | None:
        """The longest sequence that the model can read; None: no limit."""
        return None

    def check_length(self, length: int) -> None:
        """Raises UserError for a sequence above `length_limit`."""
        limit = self.length_limit
        if limit is not None and limit < length:
            message = f"the sequence has {length} positions; raise max_length or shorten it"
            raise UserError(f"model.max_length={limit}: {message}")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, fewer than `num_heads` if groups of heads share them; 0 without attention."""
        return self.num_kv_heads or self.num_heads or 0

    @property
    def key_dim(self) -> int:
        """Size of an attention head; 0 without attention."""
        return self.head_dim or (self.embed_dim // self.num_heads if self.num_heads else 0)
