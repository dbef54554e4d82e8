"""What the tasks share: from records to sequences, and from sequences to batches.

A task is the `examples` of a `DataConfig` whose source has records. Besides the methods that all examples have
(`data/text/packing.py`) it has
    records = True;
    resolved(source): the task with what depends on the data filled in (the classes);
    encode(records, tokenizer, length, tell, labelled=True): an example for each record; pure but for what it tells;
    batch(examples, length, fill): their arrays; an example of None is a row of weight 0;
    answer(record, examples, logits): what a model's logits, a row for each of a record's examples, say of it, as JSON;
    gold_answer(record): the same of its label; shown(record): the text a person judges them by;
    targets(examples): what there is to predict, for baselines; unit: what these are.

Shape legend: B batch, C sequences of an example, T length.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxnlp.data.records import Record
from jaxnlp.data.tasks.layout import TokenSequence, overhead, shorten
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError, UserError

Tell = Callable[[str], Any]
CHUNK = 2000  # records tokenized at once
CUT = "cut the longer ones with data.examples.truncate=True"


@dataclasses.dataclass(frozen=True)
class Example:
    """A record as sequences. record: its number. label: what the task makes of its label."""

    record: int
    sequences: tuple[TokenSequence, ...]
    label: Any


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, -1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class TaskReader:
    """The examples of a `RecordStore`, as `data/text/packing.py` describes a reader."""

    def __init__(self, task: Any, store: Any, tokenizer: Tokenizer | None, length: int):
        if tokenizer is None:
            raise UserError("data.examples: needs the tokenizer; give it to TrainBatches or eval_batches")
        if not hasattr(store, "encoded"):
            raise FieldError("data.source", str(store.path), f"holds text; {type(task).__name__}() needs records")
        self._task, self._length, self._fill = task, length, tokenizer.separator
        self._examples = store.encoded(task, tokenizer, length)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        return self._examples[int(index)]

    def batch(self, examples: Sequence[Any], numbers: Sequence[int]) -> dict[str, np.ndarray]:
        return self._task.batch(examples, self._length, self._fill)


def sequences(
    records: Sequence[Record],
    texts: Callable[[Record], list[str]],
    orders: Sequence[tuple[int, ...]],
    task: Any,
    tokenizer: Tokenizer,
    length: int,
    tell: Tell,
) -> list[tuple[TokenSequence, ...]]:
    """The sequences of each record.

    Args:
        texts: of a record. orders: the texts that each of its sequences is made of, in their order.
        task: its `layout` lays them out; with `truncate` longer ones are cut, and how many is told. Where it has
            `keeps_last`, the last text of a sequence is never cut.

    Raises:
        FieldError: a sequence longer than `length`, and truncate is False; a `length` that leaves no room.
    """
    layout, specials = task.layout, task.layout.specials(tokenizer)
    fits = Fit(length, task.truncate, keeps_last=getattr(task, "keeps_last", False))
    found = []
    for part in chunks(records, tell):
        given = [texts(record) for record in part]
        ids = iter(tokenizer.encode_batch([text for row in given for text in row]))
        for record, row in zip(part, given, strict=True):
            tokens = list(itertools.islice(ids, len(row)))
            rows = []
            for order in orders:
                chosen = [tokens[i] for i in order]
                room = room_of(length, overhead(layout, len(chosen), specials))
                rows.append(layout.sequence(fits(record, chosen, room), specials))
            found.append(tuple(rows))
    fits.done(tell)
    return found


def room_of(length: int, others: int) -> int:
    """The tokens of text that so many others leave room for. Raises FieldError where that is none."""
    if others >= length:
        raise FieldError("data.seq_len", length, f"special tokens alone take {others}; use far more")
    return length - others


class Fit:
    """Sees to it that texts fit: counts those that do not, and cuts them if it may."""

    def __init__(
        self,
        length: int,
        truncate: bool,
        remedy: str = CUT,
        setting: str = "data.seq_len",
        keeps_last: bool = False,
    ):
        self._length, self._truncate, self._remedy, self._setting = length, truncate, remedy, setting
        self._keeps_last = keeps_last
        self._over: dict[str, int] = {}

    def __call__(self, record: Record, texts: Sequence[Any], room: int) -> Sequence[Any]:
        excess = sum(map(len, texts)) - room
        if excess <= 0:
            return texts
        self._over[record.where] = max(self._over.get(record.where, 0), self._length + excess)
        if not self._keeps_last or not self._truncate:
            return shorten(texts, max(0, room))
        *others, last = texts
        if len(last) > room:
            size = self._length - room + len(last)
            raise FieldError(self._setting, self._length, f"{record.where} has an option of {size} tokens; use {size}")
        return [*shorten(others, room - len(last)), last]

    def done(self, tell: Tell) -> None:
        if not self._over:
            return
        where = max(self._over, key=lambda name: self._over[name])
        size, count = self._over[where], len(self._over)
        if not self._truncate:
            more = f" ({count} records are too long, this one the longest)" if count > 1 else ""
            raise FieldError(
                self._setting, self._length, f"{where} makes {size} tokens{more}; use {size}, or {self._remedy}"
            )
        tell(f"note: {count:,} records cut to {self._setting}={self._length} tokens; the longest, {where}, had {size}")


def chunks(records: Sequence[Record], tell: Tell) -> Iterator[Sequence[Record]]:
    """The records in parts, telling now and then how far the work is."""
    told = time.monotonic()
    for start in range(0, len(records), CHUNK):
        if time.monotonic() - told > 1:
            told = time.monotonic()
            tell(f"{start:,} of {len(records):,} records tokenized")
        yield records[start : start + CHUNK]


def stack(examples: Sequence[Any], num_sequences: int, length: int, fill: int, language_model: bool) -> dict[str, Any]:
    """`tokens`, `segment_ids`, `types` (B, C, T), `extract` (B, C), `weights` (B,), and for a decoder `lm_targets`,
    `lm_weights` (B, C, T): the next token, wherever there is one."""
    B, C, T = len(examples), num_sequences, length
    batch: dict[str, Any] = {name: np.zeros((B, C, T), np.int32) for name in ("segment_ids", "types")}
    batch["tokens"] = np.full((B, C, T), fill, np.int32)
    batch["extract"], batch["weights"] = np.zeros((B, C), np.int32), np.zeros(B, np.float32)
    for i, example in enumerate(examples):
        if example is None:
            continue
        batch["weights"][i] = 1.0
        for k, sequence in enumerate(example.sequences):
            size = len(sequence.tokens)
            batch["tokens"][i, k, :size], batch["types"][i, k, :size] = sequence.tokens, sequence.types
            batch["segment_ids"][i, k, :size] = 1
            batch["extract"][i, k] = sequence.extract
    if language_model:
        last = np.zeros((B, C, 1), np.int32)
        batch["lm_targets"] = np.concatenate([batch["tokens"][..., 1:], last], -1)
        batch["lm_weights"] = np.concatenate([batch["segment_ids"][..., 1:], last], -1).astype(np.float32)
    return batch


def shapes(num_sequences: int, length: int, label: Any, language_model: bool) -> dict[str, Any]:
    """As `Packed.shapes`, of what `stack` makes and labels of a dtype."""
    C, T = num_sequences, length
    found: dict[str, Any] = dict.fromkeys(("tokens", "segment_ids", "types"), ((C, T), np.int32))
    found |= {"extract": ((C,), np.int32), "weights": ((), np.float32), "labels": ((), label)}
    if language_model:
        found |= {"lm_targets": ((C, T), np.int32), "lm_weights": ((C, T), np.float32)}
    return found
