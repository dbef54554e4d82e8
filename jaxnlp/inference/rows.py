"""Pads prompts, sources and forced prefixes of different lengths to arrays.

Decoder inputs are padded on the left, so that every row writes its next token at the same index; encoder inputs are
padded on the right. Segment 0 is padding.

Shape legend: B batch, P initial decoder input, S encoder input, K longest forced prefix.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import UserError

Ids = Sequence[Sequence[int]]
Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class Rows:
    """A batch to continue.

    tokens, segments: (B, P), the decoder's. inputs, input_segments: (B, S), the encoder's, or None.
    adapter_ids: (B,), the adapter of each row (`peft/multi_adapter.py`), or None.
    """

    tokens: Array
    segments: Array
    inputs: Array | None = None
    input_segments: Array | None = None
    adapter_ids: Array | None = None

    @property
    def count_B(self) -> Any:
        """Number of real tokens in each row, which is the position of the first new token."""
        return self.segments.sum(axis=1)

    @property
    def positions_BP(self) -> jax.Array:
        return jnp.maximum(jnp.cumsum(self.segments, axis=1) - 1, 0)


jax.tree_util.register_dataclass(Rows, ["tokens", "segments", "inputs", "input_segments", "adapter_ids"], [])


def make_rows(
    model: Any, prompts: Ids, max_new_tokens: int, forced: Ids | None, adapter_ids: Sequence[int] | None = None
) -> Rows:
    """Prompts and forced prefixes as arrays.

    Args:
        model: a `Generator`. For an encoder-decoder, prompts are its sources.

    Raises:
        UserError: no prompts, max_new_tokens below 1, not one forced prefix or adapter id per prompt, an empty decoder
            or encoder input, or more positions than the model has.
    """
    if not prompts or max_new_tokens < 1:
        raise UserError(
            f"generate: {len(prompts)} prompts and max_new_tokens={max_new_tokens}; expected at least 1 of each"
        )
    if forced is None:
        forced = [[]] * len(prompts)
    if len(forced) != len(prompts):
        raise UserError(f"forced_prefix: {len(forced)} prefixes for {len(prompts)} prompts; expected one per prompt")
    if adapter_ids is not None and np.shape(adapter_ids) != (len(prompts),):
        raise UserError(
            f"adapter_ids: shape {np.shape(adapter_ids)} for {len(prompts)} prompts; expected one id per prompt"
        )
    ids_B = None if adapter_ids is None else np.asarray(adapter_ids)
    heads = [[]] * len(prompts) if model.encoder_decoder else prompts
    _check_room(model, prompts, max_new_tokens, forced)
    rows = [[*model.start_of(head), *head, *prefix] for head, prefix in zip(heads, forced, strict=True)]
    if not all(len(row) > len(prefix) for row, prefix in zip(rows, forced, strict=True)):
        raise UserError("generate: empty prompt; the model has no start token, so a prompt needs at least one token")
    limit = model.length_limit
    room = None if limit is None else limit - max_new_tokens
    tokens_BP, segments_BP = _pad(model, rows, room, left=True)
    if not model.encoder_decoder:
        return Rows(tokens_BP, segments_BP, adapter_ids=ids_B)
    sources = [[*prompt, *model.source_end_ids] for prompt in prompts]
    if not all(sources):
        raise UserError("generate: empty source; the model adds no end token, so a source needs at least one token")
    inputs_BS, input_segments_BS = _pad(model, sources, limit, left=False)
    return Rows(tokens_BP, segments_BP, inputs_BS, input_segments_BS, ids_B)


def _check_room(model: Any, prompts: Ids, max_new_tokens: int, forced: Ids) -> None:
    limit = model.length_limit
    if limit is None:
        return
    length, prompt_length = max((decoder_length(model, p, f), len(p)) for p, f in zip(prompts, forced, strict=True))
    start = "one end-of-text token" if model.decoder_start_ids is None else f"{len(model.start_ids)} start tokens"
    parts = [] if model.encoder_decoder else [f"{prompt_length} prompt tokens"]
    parts += [start] + (
        [f"{length - len(model.start_ids)} forced tokens"] if model.encoder_decoder and any(forced) else []
    )
    if length + max_new_tokens > limit:
        raise UserError(
            f"generate: {', '.join(parts)} and max_new_tokens={max_new_tokens} exceed "
            f"model.max_length={limit}; shorten the prompt or reduce max_new_tokens"
        )
    longest = max(map(len, prompts)) + len(model.source_end_ids)
    if model.encoder_decoder and longest > limit:
        raise UserError(f"generate: a source of {longest} tokens exceeds model.max_length={limit}; shorten it")


def decoder_length(model: Any, prompt: Sequence[int], forced: Sequence[int]) -> int:
    """Number of tokens in the decoder's input before the first new one."""
    return len(model.start_of(prompt)) + len(forced) + (0 if model.encoder_decoder else len(prompt))


def _pad(model: Any, rows: list[list[int]], room: int | None, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, segments): 1 on real tokens, 0 on padding, up to a multiple of `length_multiple`, or up to `room`."""
    longest, multiple = max(map(len, rows)), model.length_multiple
    size = -(-longest // multiple) * multiple
    if room is not None:
        size = max(longest, min(size, room))
    tokens = np.full((len(rows), size), model.eos_id, np.int32)
    segments = np.zeros_like(tokens)
    for i, row in enumerate(rows):
        place = slice(size - len(row), size) if left else slice(0, len(row))
        tokens[i, place], segments[i, place] = row, 1
    return tokens, segments
