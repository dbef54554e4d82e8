"""Text-to-text generation: encodes prompts, decodes new tokens, handles stop strings and streams text."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.inference.decode import CHUNK, Generation, Generator
from jaxnlp.inference.sampling import Sampling
from jaxnlp.inference.stream import TextStream


def generate_text(
    generator: Generator,
    tokenizer: Any,
    params: Any,
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    *,
    stop: Sequence[str] = (),
    forced_prefix: str | Sequence[str] = "",
    on_text: Callable[[int, str], Any] | None = None,
    chunk: int = CHUNK,
) -> list[Generation]:
    """The continuation of each prompt, with `Generation.text` set. For an encoder-decoder, prompts are its sources.

    Args:
        tokenizer: the run's tokenizer, or any object with `encode_batch`, which returns lists of ids, and `decode`.
        stop: strings that end a text where they first appear after the forced prefix, wherever token boundaries fall.
            `text` ends before the stop string; `ids` include all tokens up to the one that completed it.
        forced_prefix: text that every new text begins with, or one for each prompt.
        on_text: called as on_text(row, text) with each new, final piece of text; the pieces concatenate to the row's
            `text`.
        chunk: tokens between two checks for stop strings and calls of `on_text`; the results do not depend on it.

    Raises:
        UserError: as `Generator.generate`; `encode_batch` does not return lists of ids; the number of
            forced prefixes differs from that of prompts.
        FieldError: an empty stop string.
    """
    ids = _encode_prompts(tokenizer, prompts)
    prefixes = _encode_prefixes(tokenizer, forced_prefix, len(ids))
    before = [[]] * len(ids) if generator.encoder_decoder else ids
    streams = [TextStream(tokenizer.decode, row, stop) for row in before]
    emit = on_text or (lambda row, text: None)
    watched = stop or on_text is not None
    generations = generator.generate(
        params,
        ids,
        max_new_tokens,
        sampling,
        seed,
        forced_prefix=prefixes,
        on_tokens=_listener(streams, prefixes, emit) if watched else None,
        chunk=chunk,
    )
    if not watched:
        for stream, generation in zip(streams, generations, strict=True):
            stream.force(generation.ids)
    for row, stream in enumerate(streams):
        tail = stream.close()
        if tail:
            emit(row, tail)
    return [_ended(g, stream.ended_at, stream.text) for stream, g in zip(streams, generations, strict=True)]


def _encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """The prompts' ids. Raises UserError if `encode_batch` does not return lists of ids."""
    ids = tokenizer.encode_batch(list(prompts))
    if ids and not isinstance(ids[0], list):
        name = f"{type(tokenizer).__module__}.{type(tokenizer).__name__}"
        raise UserError(
            f"tokenizer={name}: encode_batch returns a list of {type(ids[0]).__name__}; expected lists of ids; "
            "wrap it with jaxnlp.data.huggingface_tokenizer.wrap(), or use jaxnlp.load(folder).generate(texts)"
        )
    return ids


def _encode_prefixes(tokenizer: Any, forced_prefix: str | Sequence[str], count: int) -> list[list[int]]:
    """The ids of each prompt's forced prefix. Raises UserError if there is not one for each of `count` prompts."""
    prefixes = [forced_prefix] * count if isinstance(forced_prefix, str) else list(forced_prefix)
    if len(prefixes) != count:
        raise UserError(f"forced_prefix: {len(prefixes)} prefixes for {count} prompts; expected one per prompt")
    return tokenizer.encode_batch(prefixes)


def _listener(
    streams: Sequence[TextStream], prefixes: Sequence[Sequence[int]], emit: Callable[[int, str], Any]
) -> Callable[[int, list[int]], bool]:
    """An `on_tokens` for `Generator.generate`: emits the text of a row's new tokens and returns whether the row ends.

    The first call for a row with a forced prefix passes that prefix."""
    past_prefix = [not prefix for prefix in prefixes]

    def on_tokens(row: int, new: list[int]) -> bool:
        stream = streams[row]
        text = stream.push(new) if past_prefix[row] else stream.force(new)
        past_prefix[row] = True
        if text:
            emit(row, text)
        return stream.ended_at is not None

    return on_tokens


def _ended(generation: Generation, count: int | None, text: str) -> Generation:
    """The generation with its text, and cut to `count` tokens if a stop string ended it."""
    if count is None:
        return dataclasses.replace(generation, text=text)
    ids, log_probs = generation.ids[:count], generation.log_probs[:count]
    return Generation(ids, log_probs, None, "stop", text)


def continuation(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` when they follow the ids `before`."""
    stream = TextStream(tokenizer.decode, before)
    return stream.force(ids) + stream.close()
