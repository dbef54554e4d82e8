"""Fine-tuning: a trunk, pretrained elsewhere, and one linear map that the task adds to it.

The heads of BERT (Devlin et al. 2019, arXiv:1810.04805, section 4) and of GPT (Radford et al. 2018, sections 3.2 and
3.3), each on any encoder or decoder. What an example looks like to the trunk is the data's affair, what is learned from
it the objective's.

Shape legend: B batch, C sequences an example is made of, T length, D model, N classes, V vocabulary, R = B C rows.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn import checks
from jaxnlp.nn.linear import Linear


@dataclasses.dataclass(kw_only=True)
class SequenceClassificationHead:
    """A class for an example. The states of its sequences are added before the map (similarity in both orders)."""

    num_classes: int = 2
    of_tokens = False
    use_bias = True

    def check(self) -> None:
        checks.positive(self, "num_classes")

    @property
    def features(self) -> int:
        return self.num_classes

    def logits(self, states_BCD: jax.Array, linear: Linear) -> jax.Array:
        """(B, N)."""
        return linear(states_BCD.sum(1))


@dataclasses.dataclass(kw_only=True)
class RegressionHead:
    """A number for an example, its sequences added as for a class."""

    of_tokens = False
    use_bias = True
    features = 1

    def logits(self, states_BCD: jax.Array, linear: Linear) -> jax.Array:
        """(B,)."""
        return linear(states_BCD.sum(1))[:, 0]


@dataclasses.dataclass(kw_only=True)
class MultipleChoiceHead:
    """A score for each sequence, one vector times its state; the softmax over them is the objective's."""

    of_tokens = False
    use_bias = False  # the softmax over the options would cancel it
    features = 1

    def logits(self, states_BCD: jax.Array, linear: Linear) -> jax.Array:
        """(B, C)."""
        return linear(states_BCD)[..., 0]


@dataclasses.dataclass(kw_only=True)
class TokenClassificationHead:
    """A class for each token."""

    num_classes: int = 2
    of_tokens = True
    use_bias = True

    def check(self) -> None:
        checks.positive(self, "num_classes")

    @property
    def features(self) -> int:
        return self.num_classes

    def logits(self, states_BTD: jax.Array, linear: Linear) -> jax.Array:
        """(B, T, N)."""
        return linear(states_BTD)


@dataclasses.dataclass(kw_only=True)
class SpanExtractionHead:
    """A start vector S and an end vector E: their products with each state (Devlin et al. 2019, section 4.2)."""

    of_tokens = True
    use_bias = False  # the softmax over the places would cancel it
    features = 2

    def logits(self, states_BTD: jax.Array, linear: Linear) -> jax.Array:
        """(B, T, 2): of the span's start and of its end."""
        return linear(states_BTD)


@dataclasses.dataclass(kw_only=True)
class ModelWithHead:
    """A trunk with a head.

    trunk: a config of an encoder, as `BertConfig(heads=("pooler",))`, or of a decoder, as `GPTConfig()`. Of an
        encoder's own heads only the pooler may be there, and only for heads that read a sequence: tanh(W x + b) of its
        first token is then what they read.
    head: SequenceClassificationHead(), RegressionHead(), MultipleChoiceHead(), TokenClassificationHead(),
        SpanExtractionHead(), or any object like them.
    dropout_rate: of the states that the head reads.
    """

    trunk: Any
    head: Any
    dropout_rate: float = 0.1

    def check(self) -> None:
        """Raises FieldError naming the first field whose value cannot work."""
        checks.rates(self, "dropout_rate")
        trunk, head = checks.name(self.trunk), checks.name(self.head)
        if not hasattr(self.head, "of_tokens"):
            raise FieldError("head", head, "is not a head; use SequenceClassificationHead(), ...")
        if getattr(self.trunk, "encoder_decoder", False):
            raise FieldError(
                "trunk",
                trunk,
                "is an encoder-decoder, which takes no head; use an encoder, as BertConfig(), or a decoder, as "
                "GPTConfig(), or write the labels as text and train with objective=Seq2Seq()",
            )
        if self.decodes:
            return
        if not hasattr(self.trunk, "heads"):
            raise FieldError("trunk", trunk, "gives no states to read; use BertConfig(), GPTConfig() or LlamaConfig()")
        allowed = ((),) if self.head.of_tokens else ((), ("pooler",))
        if tuple(self.trunk.heads) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise FieldError("trunk.heads", self.trunk.heads, f"{head} would leave them untrained; use {expected}")

    @property
    def decodes(self) -> bool:
        """Whether the trunk is a language model, which reads from left to right."""
        return hasattr(self.trunk, "make_cache")

    @property
    def longest(self) -> int | None:
        """The longest sequence the trunk can read, or None where its positions have no end."""
        return self.trunk.longest

    @property
    def policy(self) -> Any:
        return self.trunk.policy

    @property
    def attention(self) -> Any:
        return self.trunk.attention

    def module(self) -> "ModelWithHeadModule":
        return ModelWithHeadModule(self)

    def inputs(self, batch: int, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The module's positional arguments."""
        shape = (batch, length) if self.head.of_tokens else (batch, 1, length)
        return (jax.ShapeDtypeStruct(shape, jnp.int32),)

    def flops_per_token(self, length: int, predicted: float = 1.0) -> float:
        """Floating-point operations of one training step per token, counted as GPT's are; `predicted`: share of
        positions that go through a decoder's output map, 0 where there is no auxiliary loss."""
        D, trunk = self.trunk.embed_dim, self.trunk.flops_per_token(length)
        if self.decodes:
            trunk -= 3.0 * (1 - predicted) * 2 * D * self.trunk.vocab_size
        return trunk + 3.0 * 2 * D * self.head.features / (1 if self.head.of_tokens else length)


class ModelWithHeadModule(nn.Module):
    """Tokens to the head's logits. Parameters: `trunk`, the trunk's own tree; `head`, with `kernel` (D, features) and,
    where it has one, `bias` (features,)."""

    config: ModelWithHead

    def setup(self):
        c = self.config
        self.trunk = c.trunk.module()
        self.dropout = nn.Dropout(c.dropout_rate)
        self.head = Linear(
            (c.head.features,), ("embed", "classes"), c.policy, use_bias=c.head.use_bias, dtype="float32"
        )

    def __call__(self, tokens, *, types=None, segment_ids=None, extract=None, deterministic: bool = True):
        """A dict of what the head gives. Under `jit`, what is not used is not computed.

        Args:
            tokens: integer ids: (B, T) for heads of tokens, (B, C, T) for heads of sequences.
            types: of the same shape, kinds of tokens; None: all 0. Only encoders with several kinds read them.
            segment_ids: of the same shape; attention stays within equal ones, and 0 is padding. None: no padding.
            extract: (B, C) place whose state stands for each sequence; None: an encoder's first, a decoder's last that
                is not padding. An encoder with a pooler always has the first.
            deterministic: False applies dropout, and needs the "dropout" key.

        Returns:
            logits, in float32, of the shape that the head says; for a decoder also lm, the logits of the token after
            each position: (B, T, V) or (B, C, T, V).

        Raises:
            UserError: tokens of another shape than the head reads.
        """
        head, (*lead, T) = self.config.head, tokens.shape
        if len(lead) != (1 if head.of_tokens else 2):
            expected = "(batch, length)" if head.of_tokens else "(batch, sequences, length)"
            raise UserError(
                f"model.head={checks.name(head)}: reads tokens of shape {expected}, this batch has {tokens.shape}; "
                "use the data.examples of such a task"
            )
        flat = lambda x: None if x is None else x.reshape(-1, T)
        states, pooled, lm = self.states(flat(tokens), flat(types), flat(segment_ids), deterministic)
        if not head.of_tokens:
            if pooled is None:
                places_R = self.places(states, flat(segment_ids), extract)
                pooled = jnp.take_along_axis(states, places_R[:, None, None], axis=1)[:, 0]
            states = pooled.reshape(*lead, -1)
        found = {"logits": head.logits(self.dropout(states, deterministic), self.head)}
        return found if lm is None else {**found, "lm": lm.reshape(*lead, T, -1)}

    def states(self, tokens_RT, types_RT, segments_RT, deterministic) -> tuple[Any, Any, Any]:
        """What the trunk gives: its last states (R, T, D), an encoder's pooled ones (R, D) or None, and a decoder's
        logits (R, T, V) or None."""
        c = self.config
        if c.decodes:
            lm, hidden = self.trunk(tokens_RT, segment_ids=segments_RT, with_hidden=True, deterministic=deterministic)
            return hidden, None, lm
        types_RT = types_RT if c.trunk.num_types > 1 else None
        out = self.trunk(tokens_RT, types=types_RT, segment_ids=segments_RT, deterministic=deterministic)
        return out["hidden"], out.get("pooled"), None

    def places(self, states_RTD, segments_RT, extract_BC) -> jax.Array:
        """(R,): where the state of each sequence stands."""
        R, T, _ = states_RTD.shape
        if extract_BC is not None:
            return extract_BC.reshape(R)
        if not self.config.decodes:
            return jnp.zeros(R, jnp.int32)
        real_RT = jnp.ones((R, T), jnp.int32) if segments_RT is None else segments_RT
        return jnp.max(jnp.where(real_RT != 0, jnp.arange(T), 0), axis=1)
