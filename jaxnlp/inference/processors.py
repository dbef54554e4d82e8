"""Changes of a model's scores before a token is chosen, in sampling and in beam search.

Shape legend: R rows or beams, T tokens, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError

NEVER = -jnp.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processors:
    """The options that `Sampling` and `BeamSearch` share.

    repetition_penalty: scores of tokens in the prompt or the new text are divided by it if positive and multiplied if
        negative, so that values above 1 make repeated tokens less likely (CTRL: Keskar et al. 2019, arXiv:1909.05858,
        section 4.1). 1.0 changes nothing. An encoder's source does not count, its decoder's tokens do.
    min_new_tokens: a text has at least this many new tokens.
    """

    repetition_penalty: float = 1.0
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < float("inf"):
            raise FieldError("repetition_penalty", self.repetition_penalty, "expected a positive number; 1.0 is none")
        if self.min_new_tokens < 0:
            raise FieldError("min_new_tokens", self.min_new_tokens, "expected a number of tokens, 0 or more")


def process(
    scores_RV: jax.Array, options: Processors, separator: int, step: jax.Array | int, seen_RV: jax.Array | None
) -> jax.Array:
    """Scores of the token at place `step` of the new text, changed as the options say.

    Args:
        scores_RV: logits, or in beam search log-probabilities.
        seen_RV: True for the tokens that each row holds already; None without a repetition penalty.
    """
    if seen_RV is not None:
        penalty = options.repetition_penalty
        changed_RV = jnp.where(scores_RV < 0, scores_RV * penalty, scores_RV / penalty)
        scores_RV = jnp.where(seen_RV, changed_RV, scores_RV)
    if options.min_new_tokens:
        barred_V = (jnp.arange(scores_RV.shape[-1]) == separator) & (step < options.min_new_tokens)
        scores_RV = jnp.where(barred_V, NEVER, scores_RV)
    return scores_RV


def seen_in(tokens_RT: jax.Array, counts_RT: jax.Array, vocab: int) -> jax.Array:
    """(R, V), True for the tokens of each row where `counts_RT`."""
    R, _ = tokens_RT.shape
    ids_RT = jnp.where(counts_RT, tokens_RT, vocab)  # out of range, so dropped
    return jnp.zeros((R, vocab), bool).at[jnp.arange(R)[:, None], ids_RT].set(True, mode="drop")
