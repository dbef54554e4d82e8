"""Exhaustive search over all texts of a tiny vocabulary and length: the reference for tests of beam search."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.inference.beam import Hypothesis

LIMIT = 1_000_000  # texts


def exhaustive_search(
    apply: Callable[..., jax.Array],
    params: Any,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    eos_id: int,
    vocab_size: int,
    length_penalty: float = 1.0,
    num_return: int = 1,
    source: Sequence[int] | None = None,
) -> list[Hypothesis]:
    """The `num_return` continuations with the best scores, best first, scored as in beam search.

    A continuation ends with the end-of-text token or has max_new_tokens tokens.

    Args:
        apply: (params, tokens_BT) -> logits_BTV, without a cache; with a source (params, inputs_BS, tokens_BT).
        prompt: ids, including the start tokens.
        source: ids of the encoder input, including its end tokens.

    Raises:
        UserError: an empty prompt, max_new_tokens below 1, or more than a million continuations.
    """
    if not prompt or max_new_tokens < 1:
        raise UserError(
            f"exhaustive_search: a prompt of {len(prompt)} tokens and max_new_tokens={max_new_tokens}; "
            "expected at least 1 of each"
        )
    if (vocab_size - 1) ** max_new_tokens > LIMIT:
        raise UserError(
            f"exhaustive_search: vocab_size={vocab_size} and max_new_tokens={max_new_tokens} give more than "
            f"{LIMIT:,} texts; use beam_search"
        )
    live, scores = np.asarray([list(prompt)], np.int32), np.zeros(1)
    hypotheses: list[Hypothesis] = []
    for length in range(1, max_new_tokens + 1):
        inputs = () if source is None else (np.tile(np.asarray(source, np.int32), (len(live), 1)),)
        logits = jnp.asarray(apply(params, *inputs, live))[:, -1, :vocab_size]
        totals = scores[:, None] + np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
        ends = range(vocab_size) if length == max_new_tokens else [eos_id]
        for token in ends:
            for row, total in zip(live, totals[:, token], strict=True):
                ids = [*row[len(prompt) :].tolist(), *([] if token == eos_id else [token])]
                hypotheses.append(Hypothesis(ids, float(total / length**length_penalty)))
        other_ids = np.asarray([token for token in range(vocab_size) if token != eos_id], np.int32)
        live = np.concatenate([np.repeat(live, len(other_ids), 0), np.tile(other_ids, len(live))[:, None]], axis=1)
        scores = totals[:, other_ids].reshape(-1)
    return sorted(hypotheses, key=lambda h: -h.score)[:num_return]
