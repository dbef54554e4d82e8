"""Log-probabilities of continuations under a language model.

One pass reads the prompt and all but the last token of the continuation. Nothing is generated.

Shape legend: B batch, P decoder input, K scored tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.data.joined_text import encode_joined
from jaxnlp.errors import UserError
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.loop import log_probs, replicate
from jaxnlp.inference.rows import Ids, Rows, decoder_length

LENGTH_MULTIPLE = 16  # of padded lengths, so that batches of similar texts share a compiled program


def encode_scored(
    generator: Generator, tokenizer: Any, pairs: Sequence[tuple[str, str]]
) -> tuple[list[list[int]], list[list[int]]]:
    """The ids of prompts and of their continuations, for `score_continuations`.

    A decoder reads both as one text, so they are encoded together (`data/joined_text.py`); a token that crosses the
    end of the prompt is scored. For an encoder-decoder they are two texts.
    """
    if generator.encoder_decoder:
        prompts, texts = (tokenizer.encode_batch([pair[k] for pair in pairs]) for k in range(2))
        return prompts, texts
    rows = encode_joined(tokenizer, pairs)
    return [prompt for prompt, _ in rows], [text for _, text in rows]


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
    _check_lengths(generator, prompts, continuations)
    generator = dataclasses.replace(generator, length_multiple=LENGTH_MULTIPLE)
    scores: list[list[float]] = []
    for start in range(0, len(prompts), batch_size):
        between_batches()
        rows, texts = (filled(ids[start : start + batch_size], batch_size) for ids in (prompts, continuations))
        scores += _score_batch(generator, params, rows, texts)
    return scores[: len(prompts)]


def _check_lengths(generator: Generator, prompts: Ids, continuations: Ids) -> None:
    limit = generator.length_limit
    if limit is None:
        return
    for i, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        length = decoder_length(generator, prompt, continuation)
        source = len(prompt) + len(generator.source_end_ids) if generator.encoder_decoder else 0
        if max(length, source) > limit:
            parts = "the prompt has" if source > limit else "prompt and continuation have"
            raise UserError(
                f"score: text {i}: {parts} {max(length, source)} tokens, with start and end tokens; "
                f"model.max_length is {limit}; shorten it"
            )


def _score_batch(generator: Generator, params: Any, prompts: Ids, continuations: Ids) -> list[list[float]]:
    read = [ids[:-1] for ids in continuations]
    rows = generator.rows(prompts, 1, read)
    last_B = np.asarray([ids[-1] if ids else generator.eos_id for ids in continuations], np.int32)
    num_scored = 1 + generator.padded_prefix(rows, read)
    with generator.context(len(prompts)):
        log_probs_BK = np.asarray(_log_probs(generator, num_scored, generator.prepare_params(params), rows, last_B))
    return [row[len(row) - len(ids) :].tolist() for row, ids in zip(log_probs_BK, continuations, strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_probs(generator: Generator, num_scored: int, params: Any, rows: Rows, last_B: jax.Array) -> jax.Array:
    """(B, K): the log-probabilities of the last K - 1 tokens of `rows` and of `last_B` after them."""
    B, P = rows.tokens.shape
    logits_BKV, _ = generator.prefill(params, rows, generator.new_cache(params, B, P), num_scored)
    tokens_BK = jnp.concatenate([rows.tokens[:, P - num_scored + 1 :], last_B[:, None]], axis=1)
    return replicate(log_probs(generator.mask_padded_ids(logits_BKV), tokens_BK))


def filled(rows: Sequence[Any], size: int) -> list[Any]:
    """The rows, followed by copies of the first one up to `size` rows, since every number of rows is compiled anew."""
    return [*rows, *[rows[0]] * (size - len(rows))]
