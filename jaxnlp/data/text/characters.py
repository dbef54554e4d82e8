"""Words as characters, each to be predicted from those before it and from those after: the examples of ELMo.

The tokens of the corpus are the words, and their characters the bytes of their text. Each document becomes

    begin  word  word  ...  word  end

and these run on one after the other, cut into windows of T places. A window may hold the end of one document and the
beginning of the next: each is a segment of its own, and no state passes from one to the other. A document that a window
continues begins there with no state, in either direction; its words across the edge are still predicted. So, in each
direction, every word and one marker a document is predicted once: as many as the store has targets.

Shape legend: B batch, T length, C characters of a word, V vocabulary.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnlp.data.task import Batch, Reader, Shapes, Task, require_tokenizer
from jaxnlp.data.text.sentences import borders_of
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.nn.characters import BEGIN_SENTENCE, END_SENTENCE, NO_WORD, spell

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig


@dataclasses.dataclass(kw_only=True)
class Characters(Task):
    """Examples for `objectives.bilm`.

    max_chars: characters of a word, its two markers included; the model's `max_chars`.
    """

    max_chars: int = 50

    def check(self) -> None:
        if self.max_chars < 3:
            raise FieldError("max_chars", self.max_chars, "expected 3 or more: two markers and a character")

    def open(self, store: TokenStore, tokenizer: Tokenizer | None, config: "DataConfig") -> "CharacterReader":
        return CharacterReader(
            self, store, require_tokenizer(tokenizer), config.seq_len, config.attend_across_documents
        )

    def shapes(self, config: "DataConfig") -> Shapes:
        T = config.seq_len
        found: dict[str, Any] = {"tokens": ((T, self.max_chars), np.int32), "segment_ids": ((T,), np.int32)}
        for way in ("forward", "backward"):
            found |= {f"{way}_targets": ((T,), np.int32), f"{way}_weights": ((T,), np.float32)}
        return found


class CharacterReader(Reader):
    """Batches hold `tokens` (B, T, C), character ids; `segment_ids` (B, T), 1, 2, ... a document and 0 on fill; and for
    `forward` (the word after) and `backward` (the word before) `_targets` and `_weights` (B, T). The separator is what
    is predicted where the next place is a marker; a marker itself predicts in one direction only."""

    def __init__(self, config: Characters, store: TokenStore, tokenizer: Tokenizer, length: int, across: bool):
        self._store, self._length, self._across = store, length, across
        self._separator, borders = store.meta.separator, borders_of(store)
        # With two markers for each separator inside, the k-th document is k places later than in the store.
        shift = np.arange(len(borders) - 1)
        self._begins, self._ends = borders[:-1] + shift, borders[1:] + shift
        words = [b"" if piece is None else piece for piece in tokenizer.pieces()]
        spelled = spell([*words, BEGIN_SENTENCE, END_SENTENCE], config.max_chars)
        self._begin, self._end, self._none = len(words), len(words) + 1, len(words) + 2
        self._characters = np.concatenate([spelled, np.full((1, config.max_chars), NO_WORD, np.int32)])

    def __len__(self) -> int:
        return -(-(int(self._ends[-1]) + 1) // self._length)

    def batch(self, records: Sequence[int | None], indices: Sequence[int]) -> Batch:
        rows = [self._row(len(self) if index is None else index) for index in records]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {**batch, "tokens": self._characters[batch["tokens"]]}

    def _row(self, index: int) -> dict[str, np.ndarray]:
        """A window, and for its targets one place before and after; the tokens are rows of the spelling table."""
        first = index * self._length
        place = np.arange(first - 1, first + self._length + 1)
        inside = (place >= 0) & (place <= self._ends[-1])
        document = np.searchsorted(self._begins, place, side="right") - 1
        document = np.clip(document, 0, len(self._begins) - 1)
        begin, end = place == self._begins[document], place == self._ends[document]
        at = np.clip(place - document, 0, len(self._store) - 1)
        words = self._store.read(int(at[0]), int(at[-1]) + 1)[at - at[0]]  # at markers, the separator
        tokens = np.where(begin, self._begin, np.where(end, self._end, words))
        targets = np.where(begin | end, self._separator, words).astype(np.int32)
        inner, document = slice(1, -1), document - document[1]
        real = inside[inner]
        return {
            "tokens": np.where(real, tokens[inner], self._none),
            "segment_ids": np.where(real, 1 if self._across else 1 + document[inner], 0).astype(np.int32),
            "forward_targets": targets[2:],
            "forward_weights": (real & ~end[inner]).astype(np.float32),
            "backward_targets": targets[:-2],
            "backward_weights": (real & ~begin[inner]).astype(np.float32),
        }
