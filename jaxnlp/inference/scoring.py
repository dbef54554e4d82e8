"""Log-probabilities of continuations under a language model.

Each continuation is forced after its prompt, so it is scored by the prefill of the generator, in one pass.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxnlp.inference.decode import Generator
from jaxnlp.inference.rows import Ids

LENGTH_MULTIPLE = 16  # of padded lengths, so that batches of similar texts share a compiled program


def score_continuations(
    generator: Generator,
    params: Any,
    prompts: Ids,
    continuations: Ids,
    batch_size: int,
    between_batches: Callable[[], Any] = lambda: None,
) -> list[list[float]]:
    """The log-probability of each token of each continuation given all tokens before it, in nats.

    Args:
        prompts, continuations: ids; for an encoder-decoder, the sources and the texts of the decoder.
        batch_size: texts in one call of the model. The last batch is filled to this size.
        between_batches: called before each batch.

    Raises:
        UserError: a text that is too long, or an empty one where the model has no start token.
    """
    generator = dataclasses.replace(generator, length_multiple=LENGTH_MULTIPLE)
    scores: list[list[float]] = []
    for start in range(0, len(prompts), batch_size):
        between_batches()
        rows, forced = (filled(ids[start : start + batch_size], batch_size) for ids in (prompts, continuations))
        generations = generator.generate(params, rows, 1, forced_prefix=forced)
        scores += [g.log_probs[: len(f)] for g, f in zip(generations, forced, strict=True)]
    return scores[: len(prompts)]


def filled(rows: Sequence[Any], size: int) -> list[Any]:
    """The rows, followed by copies of the first one up to `size` rows, since every number of rows is compiled anew."""
    return [*rows, *[rows[0]] * (size - len(rows))]
