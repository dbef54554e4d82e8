"""Fine-tuning heads: a pretrained model with one linear map for the task.

The heads of BERT (Devlin et al. 2019, arXiv:1810.04805, section 4) and of GPT (Radford et al. 2018, sections 3.2 and
3.3), each for any encoder or decoder. `data/tasks/` builds the input sequence; `objectives/` defines the loss.

Shape legend: B batch, C sequences of an example, T length, D model, N classes, V vocabulary, R = B C rows.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn import checks
from jaxnlp.nn.head import Head
from jaxnlp.nn.kernels import AttentionKernel
from jaxnlp.nn.linear import Linear
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.nn.policy import Policy


@dataclasses.dataclass(kw_only=True)
class SequenceClassificationHead(Head):
    """One class for each example. The states of its sequences are summed before the map (similarity in both orders)."""

    num_classes: int = 2

    def check(self) -> None:
        checks.positive(self, "num_classes")

    def logits(self, states_BCD: jax.Array, linear: Linear) -> jax.Array:
        """(B, N)."""
        return linear(states_BCD.sum(1))


@dataclasses.dataclass(kw_only=True)
class RegressionHead(Head):
    """One number for each example. The states of its sequences are summed before the map."""

    def logits(self, states_BCD: jax.Array, linear: Linear) -> jax.Array:
        """(B,)."""
        return linear(states_BCD.sum(1))[:, 0]


@dataclasses.dataclass(kw_only=True)
class MultipleChoiceHead(Head):
    """A score for each sequence: its state times one vector. The objective applies the softmax over the sequences."""

    use_bias = False  # the softmax over the options would cancel it

    def logits(self, states_BCD: jax.Array, linear: Linear) -> jax.Array:
        """(B, C)."""
        return linear(states_BCD)[..., 0]


@dataclasses.dataclass(kw_only=True)
class TokenClassificationHead(Head):
    """A class for each token: logits (B, T, N)."""

    of_tokens = True
    num_classes: int = 2

    def check(self) -> None:
        checks.positive(self, "num_classes")


@dataclasses.dataclass(kw_only=True)
class SpanExtractionHead(Head):
    """A start vector S and an end vector E: their products with each state (Devlin et al. 2019, section 4.2).

    Logits (B, T, 2): of the span's start and of its end.
    """

    of_tokens = True
    use_bias = False  # the softmax over the places would cancel it

    @property
    def features(self) -> int:
        return 2


@dataclasses.dataclass(kw_only=True)
class ModelWithHead(ModelConfig):
    """A pretrained model with a head.

    body: the pretrained model's config: an encoder, as `BertConfig(heads=("pooler",))`, or a decoder, as `GPTConfig()`.
        An encoder may keep only the pooler of its pretraining heads, and only for a head of sequences. The head then
        reads the pooler's output, tanh(W x + b) of the first token.
    head: SequenceClassificationHead(), RegressionHead(), MultipleChoiceHead(), TokenClassificationHead(),
        SpanExtractionHead(), or another subclass of `Head`.
    dropout_rate: dropout on the states that the head reads.
    """

    body: ModelConfig = dataclasses.field(
        metadata={
            "expected": "the config of an encoder, as BertConfig(heads=('pooler',)), or of a decoder, as GPTConfig()"
        }
    )
    head: Head = dataclasses.field(
        metadata={"expected": "a head of jaxnlp.models.heads, as SequenceClassificationHead(num_classes=2)"}
    )
    dropout_rate: float = 0.1

    def check(self) -> None:
        """Raises FieldError naming the first field whose value cannot work."""
        checks.rates(self, "dropout_rate")
        body, head = checks.name(self.body), checks.name(self.head)
        if self.body.kind == "encoder-decoder":
            raise FieldError(
                "body",
                body,
                "is an encoder-decoder, which does not support heads; use an encoder, as BertConfig(), or a decoder, "
                "as GPTConfig(), or write the labels as text and train with objective=Seq2Seq()",
            )
        if self.body.kind == "decoder":
            return
        if self.body.kind != "encoder":
            raise FieldError(
                "body", body, "has no hidden states for a head; use BertConfig(), GPTConfig() or LlamaConfig()"
            )
        allowed = ((),) if self.head.of_tokens else ((), ("pooler",))
        if tuple(self.body.heads) not in allowed:
            expected = " or ".join(map(str, allowed))
            raise FieldError("body.heads", self.body.heads, f"{head} does not train these heads; use {expected}")

    @property
    def length_limit(self) -> int | None:
        return self.body.length_limit

    @property
    def policy(self) -> Policy:
        return self.body.policy or Policy()

    @property
    def attention(self) -> AttentionKernel | None:
        return self.body.attention

    def build(self) -> "ModelWithHeadModule":
        return ModelWithHeadModule(self)

    def example_inputs(self, batch: int, length: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The module's positional arguments."""
        shape = (batch, length) if self.head.of_tokens else (batch, 1, length)
        return (jax.ShapeDtypeStruct(shape, jnp.int32),)

    def flops_per_token(self, length: int, predicted_fraction: float = 1.0) -> float:
        """Floating-point operations of one training step per token, counted as in `GPTConfig`.

        predicted_fraction: share of positions that go through a decoder's output map; 0 without an auxiliary loss.
        """
        head = 3.0 * 2 * self.body.embed_dim * self.head.features / (1 if self.head.of_tokens else length)
        return self.body.flops_per_token(length, predicted_fraction) + head


class ModelWithHeadModule(nn.Module):
    """Computes the head's logits from tokens.

    Parameters: `trunk`, the parameters of the body; `head`, with `kernel` (D, features) and, if used, `bias`
    (features,).
    """

    config: ModelWithHead

    def setup(self):
        c = self.config
        self.trunk = c.body.build()  # the body's scope: checkpoints hold this name, so it stays
        self.dropout = nn.Dropout(c.dropout_rate)
        self.head = Linear(
            (c.head.features,), ("embed", "classes"), c.policy, use_bias=c.head.use_bias, dtype="float32"
        )

    def __call__(
        self, tokens, *, token_type_ids=None, segment_ids=None, pool_positions=None, deterministic: bool = True
    ):
        """A dict of logits. Under `jit`, unused results are not computed.

        Args:
            tokens: integer ids: (B, T) for heads of tokens, (B, C, T) for heads of sequences.
            token_type_ids: token types, of the same shape; None: all 0. Ignored by models without several types.
            segment_ids: of the same shape; attention is restricted to equal ids, and 0 is padding. None: no padding.
            pool_positions: (B, C), position whose state represents each sequence. None: the first one of an encoder,
                the last one of a decoder that is not padding. An encoder with a pooler always uses the first one.
            deterministic: False applies dropout, which needs the "dropout" key.

        Returns:
            logits: the head's logits, in float32; see `Head.logits`.
            lm: for a decoder, the logits of the token after each position: (B, T, V) or (B, C, T, V).

        Raises:
            UserError: the tokens do not have the shape that the head needs.
        """
        head, (*lead, T) = self.config.head, tokens.shape
        if len(lead) != (1 if head.of_tokens else 2):
            expected = "(batch, length)" if head.of_tokens else "(batch, sequences, length)"
            raise UserError(
                f"model.head={checks.name(head)}: expected tokens of shape {expected}, got {tokens.shape}; "
                "set data.task to a task for this head"
            )
        flat = lambda x: None if x is None else x.reshape(-1, T)
        states, pooled, lm = self.states(flat(tokens), flat(token_type_ids), flat(segment_ids), deterministic)
        if not head.of_tokens:
            if pooled is None:
                places_R = self.places(states, flat(segment_ids), pool_positions)
                pooled = jnp.take_along_axis(states, places_R[:, None, None], axis=1)[:, 0]
            states = pooled.reshape(*lead, -1)
        out = {"logits": head.logits(self.dropout(states, deterministic), self.head)}
        return out if lm is None else {**out, "lm": lm.reshape(*lead, T, -1)}

    def states(self, tokens_RT, token_type_ids_RT, segments_RT, deterministic) -> tuple[Any, Any, Any]:
        """The body's last states (R, T, D), an encoder's pooled states (R, D) or None, and a decoder's logits (R, T, V)
        or None."""
        c = self.config
        if c.body.kind == "decoder":
            lm, hidden = self.trunk(tokens_RT, segment_ids=segments_RT, with_hidden=True, deterministic=deterministic)
            return hidden, None, lm
        token_type_ids_RT = token_type_ids_RT if c.body.num_types > 1 else None
        out = self.trunk(
            tokens_RT, token_type_ids=token_type_ids_RT, segment_ids=segments_RT, deterministic=deterministic
        )
        return out["hidden"], out.get("pooled"), None

    def places(self, states_RTD, segments_RT, extract_BC) -> jax.Array:
        """(R,): the position whose state is read for each sequence."""
        R, T, _ = states_RTD.shape
        if extract_BC is not None:
            return extract_BC.reshape(R)
        if self.config.body.kind != "decoder":
            return jnp.zeros(R, jnp.int32)
        real_RT = jnp.ones((R, T), jnp.int32) if segments_RT is None else segments_RT
        return jnp.max(jnp.where(real_RT != 0, jnp.arange(T), 0), axis=1)
