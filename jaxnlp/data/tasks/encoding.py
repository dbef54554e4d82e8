"""Shared code of labelled tasks: encodes texts as sequences and stacks sequences into arrays.

Shape legend: B batch, C sequences per example, T length.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxnlp.data.source import Record
from jaxnlp.data.tasks.layout import Layout, TokenSequence, shorten
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError

Logger = Callable[[str], Any]
CHUNK = 2000  # records tokenized at once
TRUNCATE = "truncate the longer ones with data.task.truncate=True"


@dataclasses.dataclass(frozen=True)
class Example:
    """An encoded record. record: its index in the split. label: the label, in a form that depends on the task."""

    record: int
    sequences: tuple[TokenSequence, ...]
    label: Any


def encode_texts(
    records: Sequence[Record],
    texts: Callable[[Record], list[str]],
    orders: Sequence[tuple[int, ...]],
    layout: Layout,
    tokenizer: Tokenizer,
    truncator: "Truncator",
    log: Logger,
) -> list[tuple[TokenSequence, ...]]:
    """Encodes the sequences of each record.

    Args:
        texts: returns the texts of a record. orders: for each sequence, the indices of its texts, in order.

    Raises:
        FieldError: a sequence is too long and may not be truncated, or the length leaves no room for text.
    """
    encoded = []
    for part in chunks(records, log):
        rows = [texts(record) for record in part]
        parts = iter(layout.encode(tokenizer, [[row[i] for i in order] for row in rows for order in orders]))
        for record in part:
            sequences = []
            for tokens, special_ids in itertools.islice(parts, len(orders)):
                room = text_room(truncator.length, layout.overhead(len(tokens), special_ids))
                sequences.append(layout.sequence(truncator(record, tokens, room), special_ids))
            encoded.append(tuple(sequences))
    truncator.report(log)
    return encoded


def text_room(length: int, overhead: int) -> int:
    """The token budget left for text after `overhead` special tokens. Raises FieldError if it is empty."""
    if overhead >= length:
        raise FieldError("data.seq_len", length, f"the special tokens take {overhead} positions; increase it")
    return length - overhead


class Truncator:
    """Truncates texts that do not fit, and counts their records.

    Args:
        length: maximum sequence length, in tokens. truncate: if False, `report` raises when a text was too long.
        remedy: the advice in the error message. setting: the config field that sets `length`.
        keeps_last: whether the last text of a sequence is never truncated.
        noun: what is truncated, in the log and in the singular.
    """

    def __init__(
        self,
        length: int,
        truncate: bool,
        remedy: str = TRUNCATE,
        setting: str = "data.seq_len",
        keeps_last: bool = False,
        noun: str = "record",
    ):
        self.length, self._noun = length, noun
        self._truncate, self._remedy, self._setting = truncate, remedy, setting
        self._keeps_last = keeps_last
        self._too_long: dict[str, int] = {}

    def __call__(self, record: Record, texts: Sequence[Any], room: int) -> Sequence[Any]:
        """Returns the texts of one sequence, truncated to at most `room` tokens.

        Raises:
            FieldError: with `keeps_last`, the last text alone is longer than `room`.
        """
        excess = sum(map(len, texts)) - room
        if excess <= 0:
            return texts
        self._too_long[record.where] = max(self._too_long.get(record.where, 0), self.length + excess)
        if not self._keeps_last or not self._truncate:
            return shorten(texts, max(0, room))
        *first_texts, last = texts
        if len(last) > room:
            size = self.length - room + len(last)
            raise FieldError(
                self._setting, self.length, f"{record.where} has an option of {size} tokens; set it to {size}"
            )
        return [*shorten(first_texts, room - len(last)), last]

    def report(self, log: Logger) -> None:
        """Logs how many records were truncated. Raises FieldError, naming the longest, if truncation is not allowed."""
        if not self._too_long:
            return
        longest = max(self._too_long, key=lambda name: self._too_long[name])
        size, count = self._too_long[longest], len(self._too_long)
        if not self._truncate:
            note = f" ({count} records are too long, this one is the longest)" if count > 1 else ""
            expected = f"{longest} has {size} tokens{note}; set it to {size}, or {self._remedy}"
            raise FieldError(self._setting, self.length, expected)
        limit, noun = f"{self._setting}={self.length}", self._noun + "s" * (count > 1)
        log(f"note: {count:,} {noun} truncated to {limit} tokens; the longest, {longest}, had {size}")


def chunks(records: Sequence[Record], log: Logger) -> Iterator[Sequence[Record]]:
    """Yields the records in chunks of CHUNK. Progress is logged about once a second."""
    logged = time.monotonic()
    for start in range(0, len(records), CHUNK):
        if time.monotonic() - logged > 1:
            logged = time.monotonic()
            log(f"{start:,} of {len(records):,} records tokenized")
        yield records[start : start + CHUNK]


def stack_examples(
    examples: Sequence[Example | None], num_sequences: int, length: int, fill: int, language_model: bool
) -> dict[str, np.ndarray]:
    """Stacks examples into the arrays of a batch.

    Args:
        examples: None is a row of padding with weight 0. fill: the padding token.
        language_model: whether to add next-token targets, for a decoder.

    Returns:
        `tokens`, `segment_ids`, `token_type_ids` (B, C, T) and `pool_positions` (B, C), int32; `weights` (B,) float32.
        With `language_model` also `lm_targets` (B, C, T) int32, the next token, and `lm_weights` (B, C, T) float32, 0
        where there is no next token.
    """
    B, C, T = len(examples), num_sequences, length
    batch: dict[str, np.ndarray] = {name: np.zeros((B, C, T), np.int32) for name in ("segment_ids", "token_type_ids")}
    batch["tokens"] = np.full((B, C, T), fill, np.int32)
    batch["pool_positions"], batch["weights"] = np.zeros((B, C), np.int32), np.zeros(B, np.float32)
    for i, example in enumerate(examples):
        if example is None:
            continue
        batch["weights"][i] = 1.0
        for k, sequence in enumerate(example.sequences):
            size = len(sequence.tokens)
            batch["tokens"][i, k, :size], batch["token_type_ids"][i, k, :size] = (
                sequence.tokens,
                sequence.token_type_ids,
            )
            batch["segment_ids"][i, k, :size] = 1
            batch["pool_positions"][i, k] = sequence.pool_position
    if language_model:
        last = np.zeros((B, C, 1), np.int32)
        batch["lm_targets"] = np.concatenate([batch["tokens"][..., 1:], last], -1)
        batch["lm_weights"] = np.concatenate([batch["segment_ids"][..., 1:], last], -1).astype(np.float32)
    return batch


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
