"""Text-to-text generation: encodes prompts, decodes new tokens, handles stop strings and streams text."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxnlp.data.joined_text import encode_joined
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
        forced_prefix: text that every new text begins with, or one for each prompt. It is encoded together with the
            prompt, so that a token may begin in the prompt and end in the prefix.
        on_text: called as on_text(row, text) with each new, final piece of text; the pieces concatenate to the row's
            `text`.
        chunk: tokens between two checks for stop strings and calls of `on_text`; the results do not depend on it.

    Raises:
        UserError: as `Generator.generate`; `encode_batch` does not return lists of ids; the number of
            forced prefixes differs from that of prompts.
        FieldError: an empty stop string.
    """
    inputs = encode_inputs(generator, tokenizer, prompts, forced_prefix)
    streams = [inputs.stream(row, tokenizer, stop) for row in range(len(inputs.prompts))]
    emit = on_text or (lambda row, text: None)
    for row, stream in enumerate(streams):
        if begun := stream.force([]):  # without a start token, the prompt's last token may hold part of the prefix
            emit(row, begun)
    watched = stop or on_text is not None
    generations = generator.generate(
        params,
        inputs.prompts,
        max_new_tokens,
        sampling,
        seed,
        forced_prefix=inputs.prefixes,
        on_tokens=_listener(streams, inputs.prefixes, emit) if watched else None,
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


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The ids of prompts and of the beginnings that their new texts must have.

    prompts: those of the decoder, or for an encoder-decoder the sources. prefixes: the first new tokens of each.
    before: the ids before the new text: `prompts`, or for an encoder-decoder none.
    alone: the ids of the text before the new text: `before`, and more where a token crosses the end of the prompt.
    """

    prompts: list[list[int]]
    prefixes: list[list[int]]
    before: list[list[int]]
    alone: list[list[int]]

    def stream(self, row: int, tokenizer: Any, stop: Sequence[str] = ()) -> TextStream:
        """A decoder of the new text of a row."""
        return TextStream(tokenizer.decode, self.before[row], stop, self.alone[row])


def encode_inputs(
    generator: Generator, tokenizer: Any, prompts: Sequence[str], forced_prefix: str | Sequence[str] = ""
) -> Inputs:
    """Encodes each prompt together with the forced prefix of its new text.

    Raises:
        UserError: `encode_batch` does not return lists of ids, or there is not one prefix for each prompt.
    """
    texts = [forced_prefix] * len(prompts) if isinstance(forced_prefix, str) else list(forced_prefix)
    if len(texts) != len(prompts):
        raise UserError(f"forced_prefix: {len(texts)} prefixes for {len(prompts)} prompts; expected one per prompt")
    alone = _encode_prompts(tokenizer, prompts)
    if generator.encoder_decoder:
        nothing: list[list[int]] = [[] for _ in alone]
        return Inputs(alone, tokenizer.encode_batch(texts), nothing, nothing)
    if not any(texts):
        return Inputs(alone, [[] for _ in alone], alone, alone)
    joined = encode_joined(tokenizer, list(zip(prompts, texts, strict=True)))
    if not generator.start_of(()):  # the model has to read a token before it predicts one
        joined = [(head, rest) if head else (rest[:1], rest[1:]) for head, rest in joined]
    heads, prefixes = [head for head, _ in joined], [rest for _, rest in joined]
    return Inputs(heads, prefixes, heads, alone)


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
