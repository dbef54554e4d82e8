"""Logits processors: change the scores before a token is chosen, in sampling and in beam search.

Shape legend: R rows or beams, T tokens, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import FieldError

NEVER = -jnp.inf
Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processors:
    """Options shared by `Sampling` and `BeamSearch`.

    repetition_penalty: scores of tokens that occur in the prompt or the new text are divided by it if positive and
        multiplied by it if negative, so that values above 1 make repetition less likely (CTRL: Keskar et al. 2019,
        arXiv:1909.05858, section 4.1). 1.0 disables it. For an encoder-decoder, only the decoder's tokens count.
    min_new_tokens: minimum number of new tokens; until then the end-of-text tokens have probability 0.
    """

    repetition_penalty: float = 1.0
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < float("inf"):
            raise FieldError(
                "repetition_penalty", self.repetition_penalty, "expected a positive number; 1.0 disables it"
            )
        if self.min_new_tokens < 0:
            raise FieldError("min_new_tokens", self.min_new_tokens, "expected 0 or more")


def process(
    scores_RV: jax.Array, options: Processors, end_ids: Sequence[int], step: jax.Array | int, seen_RV: jax.Array | None
) -> jax.Array:
    """Scores of the new token number `step` (from 0) with the options applied, (R, V).

    Args:
        scores_RV: logits, or in beam search log-probabilities. end_ids: the tokens that end a text.
        seen_RV: whether each token already occurs in the row; None without a repetition penalty.
    """
    if seen_RV is not None:
        penalty = options.repetition_penalty
        changed_RV = jnp.where(scores_RV < 0, scores_RV * penalty, scores_RV / penalty)
        scores_RV = jnp.where(seen_RV, changed_RV, scores_RV)
    if options.min_new_tokens:
        barred_V = is_end(jnp.arange(scores_RV.shape[-1]), end_ids) & (step < options.min_new_tokens)
        scores_RV = jnp.where(barred_V, NEVER, scores_RV)
    return scores_RV


def is_end(tokens: jax.Array, end_ids: Sequence[int]) -> jax.Array:
    """Whether each token ends a text, in the shape of `tokens`."""
    return (tokens[..., None] == jnp.asarray(end_ids, tokens.dtype)).any(axis=-1)


def seen_in(tokens_RT: Array, counts_RT: Array, vocab: int) -> jax.Array:
    """(R, V): whether each token occurs in the row, at the positions where `counts_RT` is true."""
    R, _ = tokens_RT.shape
    ids_RT = jnp.where(counts_RT, tokens_RT, vocab)  # an id out of range is dropped
    return jnp.zeros((R, vocab), bool).at[jnp.arange(R)[:, None], ids_RT].set(True, mode="drop")
