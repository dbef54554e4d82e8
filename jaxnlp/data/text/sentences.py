"""Inputs of an encoder: one segment of text, or a pair of segments for next-sentence prediction.

  FullSentences   [CLS] text [SEP]
  SentencePairs   [CLS] A [SEP] B [SEP], with types 0 and 1

A "sentence" is a span of contiguous text, usually longer than a linguistic sentence (Devlin et al. 2019, section 3.1).
Shape legend: T length.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.text.word_boundaries import Words
from jaxnlp.errors import FieldError, UserError

IS_NEXT, NOT_NEXT = 0, 1
LOOK_BACK = 16  # maximum tokens per word


@dataclasses.dataclass(frozen=True)
class SentenceInput:
    """One input.

    tokens, token_type_ids: int32, (T,) or shorter. next_sentence: IS_NEXT or NOT_NEXT; None if not a pair.
    """

    tokens: np.ndarray
    token_type_ids: np.ndarray
    next_sentence: int | None = None


class SentenceReader(abc.ABC):
    """The inputs of an opened store."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def record(self, index: int, random: np.random.Generator) -> SentenceInput:
        """Reads one input. All random draws use `random`."""


@dataclasses.dataclass(kw_only=True)
class SentenceInputs(abc.ABC):
    """How a corpus is cut into inputs of an encoder. pairs: whether inputs are pairs for next-sentence prediction."""

    pairs: ClassVar[bool] = False

    @abc.abstractmethod
    def open(self, store: TokenStore, words: Words, cls: int, sep: int, length: int) -> SentenceReader:
        """Opens a reader of inputs of at most `length` tokens. cls, sep: ids of the special tokens.

        Raises:
            FieldError: `length` leaves no room for text.
        """


@dataclasses.dataclass(kw_only=True)
class FullSentences(SentenceInputs):
    """Consecutive tokens of the corpus, across document boundaries, which the end-of-text token marks.

    RoBERTa's FULL-SENTENCES: Liu et al. 2019, arXiv:1907.11692, section 4.2.
    """

    def open(self, store: TokenStore, words: Words, cls: int, sep: int, length: int) -> "FullSentenceReader":
        return FullSentenceReader(store, cls, sep, length)


class FullSentenceReader(SentenceReader):
    def __init__(self, store: TokenStore, cls: int, sep: int, length: int):
        self._store, self._cls, self._sep, self._room = store, cls, sep, length - 2
        if self._room < 1:
            raise FieldError("data.seq_len", length, "expected 3 or more: a text between [CLS] and [SEP]")

    def __len__(self) -> int:
        return -(-len(self._store) // self._room)

    def record(self, index: int, random: np.random.Generator) -> SentenceInput:
        tokens = self._store.read(index * self._room, (index + 1) * self._room)
        tokens = np.asarray([self._cls, *tokens, self._sep], np.int32)
        return SentenceInput(tokens, np.zeros_like(tokens))


@dataclasses.dataclass(kw_only=True)
class SentencePairs(SentenceInputs):
    """Pairs for next-sentence prediction: B follows A, or is from another document (NotNext).

    Each document is cut into pieces of about equal length that fit. A piece is split into A and B at the start of a
    random word. For NotNext, B is replaced by as many tokens of another document, drawn uniformly.

    next_rate: probability that B follows A (Devlin et al. 2019, section 3.1, task 2).
    short_rate: probability that a piece is cut to a random length, so that the model also sees short inputs (appendix
        A.2).
    """

    pairs: ClassVar[bool] = True
    next_rate: float = 0.5
    short_rate: float = 0.1

    def check(self) -> None:
        for field, rate in (("next_rate", self.next_rate), ("short_rate", self.short_rate)):
            if not 0 <= rate <= 1:
                raise FieldError(field, rate, "expected a probability in [0, 1]")

    def open(self, store: TokenStore, words: Words, cls: int, sep: int, length: int) -> "SentencePairReader":
        return SentencePairReader(self, store, words, cls, sep, length)


class SentencePairReader(SentenceReader):
    def __init__(self, config: SentencePairs, store: TokenStore, words: Words, cls: int, sep: int, length: int):
        self._config, self._store, self._words = config, store, words
        self._cls, self._sep, self._room = cls, sep, length - 3
        if self._room < 2:
            raise FieldError("data.seq_len", length, "expected 5 or more: two texts between [CLS], [SEP] and [SEP]")
        borders = borders_of(store)
        starts, sizes = borders[:-1] + 1, np.diff(borders) - 1
        self._starts, self._sizes = starts[sizes > 0], sizes[sizes > 0]
        if len(self._starts) < 2:
            raise UserError(
                f"{store.path}: has {len(self._starts)} documents; next-sentence pairs need at least two, as negative "
                "examples combine two documents; use data.task.text=FullSentences()"
            )
        self._pieces = -(-self._sizes // self._room)
        self._before = np.concatenate([[0], np.cumsum(self._pieces)])

    def __len__(self) -> int:
        return int(self._before[-1])

    def record(self, index: int, random: np.random.Generator) -> SentenceInput:
        document = int(np.searchsorted(self._before, index, side="right")) - 1
        piece, count, size = index - self._before[document], self._pieces[document], int(self._sizes[document])
        begin, end = piece * size // count, (piece + 1) * size // count
        if end - begin > 2 and random.random() < self._config.short_rate:
            length = int(random.integers(2, end - begin))
            begin += int(random.integers(0, end - begin - length + 1))
            end = begin + length
        tokens = self._read(document, begin, end)
        cuts = np.flatnonzero(~self._words.continues(tokens))[1:]  # cuts inside a word would reveal the label
        cut = int(random.choice(cuts)) if len(cuts) else len(tokens)
        a, b, label = tokens[: min(cut, self._room - 1)], tokens[cut:], IS_NEXT  # a single word may fill the row
        if not len(b) or random.random() >= self._config.next_rate:
            b, label = self._other(document, max(1, len(b)), random), NOT_NEXT
        row = np.asarray([self._cls, *a, self._sep, *b, self._sep], np.int32)
        token_type_ids = np.zeros_like(row)
        token_type_ids[len(a) + 2 :] = 1
        return SentenceInput(row, token_type_ids, label)

    def _other(self, document: int, length: int, random: np.random.Generator) -> np.ndarray:
        other = int(random.integers(len(self._starts) - 1))
        other += other >= document
        size = int(self._sizes[other])
        begin = int(random.integers(0, max(1, size - length + 1)))
        before = min(begin, LOOK_BACK)  # word starts are known from there on
        tokens = self._read(other, begin - before, min(begin + length, size))
        begins = np.flatnonzero(~self._words.continues(tokens))
        # As long as the true continuation, since a different length would reveal the label.
        first = before if begin == 0 else int(begins[begins <= before][-1])
        return tokens[first : first + length]

    def _read(self, document: int, begin: int, end: int) -> np.ndarray:
        start = int(self._starts[document])
        return self._store.read(start + int(begin), start + int(end))


def borders_of(store: TokenStore) -> np.ndarray:
    """Positions of the end-of-text tokens in the store, in order: before each document and after the last."""
    ends = []
    for start in range(0, len(store), 1 << 22):
        ends.append(start + np.flatnonzero(store.read(start, start + (1 << 22)) == store.meta.eos_id))
    return np.concatenate(ends)


def pad(records: list[SentenceInput | None], length: int, fill: int) -> dict[str, Any]:
    """Pads inputs to `tokens`, `token_type_ids`, `segment_ids` (B, T) int32.

    Segment 0 is padding. An input of None is a row of padding.
    """
    batch = {name: np.zeros((len(records), length), np.int32) for name in ("tokens", "token_type_ids", "segment_ids")}
    batch["tokens"][:] = fill
    for i, record in enumerate(records):
        if record is not None:
            size = len(record.tokens)
            batch["tokens"][i, :size], batch["token_type_ids"][i, :size] = record.tokens, record.token_type_ids
            batch["segment_ids"][i, :size] = 1
    return batch
