"""ELMo's examples: words as characters, each predicted from the words before it and from the words after it.

The words are the tokens of the corpus, and their characters are the bytes of their text. Each document becomes

    begin  word  word  ...  word  end

The documents are concatenated and cut into windows of T positions. A window may hold the end of one document and the
beginning of the next; each is a segment of its own, and no recurrent state passes between them. A document that
continues from another window starts without state, in either direction, but its words across the window's edge are
still predicted. In each direction, every word and one marker per document is predicted once, as often as the store has
targets.

Shape legend: B batch, T length, C characters per word, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.data.baselines import Baseline, text_baselines
from jaxnlp.data.samples import SampledModel, shown
from jaxnlp.data.task import Batch, Reader, Shapes, Task, require_tokenizer
from jaxnlp.data.text.sentences import borders_of
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.nn.character_cnn import BEGIN_SENTENCE, END_SENTENCE, NO_WORD, spell

WORDS_SHOWN, WIDTH = 12, 20  # words per sample, characters per word

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig


@dataclasses.dataclass(kw_only=True)
class Characters(Task):
    """Examples for `objectives.bilm`.

    max_chars: C, characters per word including its two markers; must equal the model's `max_chars`. The model reads
        the first C - 2 of a longer word, as ELMo does (its C is 50); the word itself is predicted.
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
        fields: dict[str, Any] = {"tokens": ((T, self.max_chars), np.int32), "segment_ids": ((T,), np.int32)}
        for way in ("forward", "backward"):
            fields |= {f"{way}_targets": ((T,), np.int32), f"{way}_weights": ((T,), np.float32)}
        return fields

    def sample(self, model: SampledModel) -> list[str]:
        """Words of the first window that both directions predict, with the predictions."""
        (batch,) = model.batches(1)
        guesses = model.run(_best_words, batch)
        # The word at t is predicted forward at t - 1 and backward at t + 1.
        words, predicted_twice = batch["forward_targets"][0, :-2], batch["forward_weights"][0, :-2] > 0
        predicted_twice &= batch["backward_weights"][0, 2:] > 0
        table = np.stack([words, guesses["forward"][0, :-2], guesses["backward"][0, 2:]], 1)[predicted_twice]
        pieces = model.tokenizer.token_bytes()
        middle = table[max(0, len(table) - WORDS_SHOWN) // 2 :][:WORDS_SHOWN]
        rows = [[shown(pieces[token], "(end)")[:WIDTH] for token in row] for row in middle.tolist()]
        return [
            "",
            "words of the validation split, and the prediction of each direction:",
            "",
            *(
                "  | " + "".join(cell.ljust(WIDTH + 2) for cell in row).rstrip()
                for row in (["word", "from the words before", "from the words after"], *rows)
            ),
        ]

    def baselines(self, model: SampledModel) -> list[Baseline]:
        return text_baselines(model.store, model.tokenizer)


def _best_words(apply: Callable, batch: Any) -> dict[str, jax.Array]:
    """(B, T) the most likely word at each position, for each direction."""
    logits = apply(batch["tokens"], segment_ids=batch["segment_ids"])
    return {way: jnp.argmax(logits[way], -1) for way in ("forward", "backward")}


class CharacterReader(Reader):
    """Reads windows of words as character ids.

    Batches hold `tokens` (B, T, C) int32, character ids; `segment_ids` (B, T) int32, numbered from 1 with 0 as padding;
    `forward_targets` (the next word) and `backward_targets` (the previous word), (B, T) int32; `forward_weights` and
    `backward_weights` (B, T) float32. If the predicted position is a marker, the target is `eos_id`. A marker has
    a target in one direction only.
    """

    def __init__(self, config: Characters, store: TokenStore, tokenizer: Tokenizer, length: int, across: bool):
        self._store, self._length, self._across = store, length, across
        self._eos_id, borders = store.meta.eos_id, borders_of(store)
        # Each `eos_id` between documents becomes two markers, so document k is k positions later than in the store.
        shift = np.arange(len(borders) - 1)
        self._begins, self._ends = borders[:-1] + shift, borders[1:] + shift
        words = [b"" if piece is None else piece for piece in tokenizer.token_bytes()]
        spellings = spell([*words, BEGIN_SENTENCE, END_SENTENCE], config.max_chars)
        self._begin, self._end, self._none = len(words), len(words) + 1, len(words) + 2
        self._characters = np.concatenate([spellings, np.full((1, config.max_chars), NO_WORD, np.int32)])

    def __len__(self) -> int:
        return -(-(int(self._ends[-1]) + 1) // self._length)

    def batch(self, records: Sequence[int | None], indices: Sequence[int]) -> Batch:
        rows = [self._row(len(self) if index is None else index) for index in records]
        batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return {**batch, "tokens": self._characters[batch["tokens"]]}

    def _row(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of one window. Its tokens are row indices of the spelling table."""
        first = index * self._length
        place = np.arange(first - 1, first + self._length + 1)
        inside = (place >= 0) & (place <= self._ends[-1])
        document = np.searchsorted(self._begins, place, side="right") - 1
        document = np.clip(document, 0, len(self._begins) - 1)
        begin, end = place == self._begins[document], place == self._ends[document]
        at = np.clip(place - document, 0, len(self._store) - 1)
        words = self._store.read(int(at[0]), int(at[-1]) + 1)[at - at[0]]  # markers are the end-of-text token
        tokens = np.where(begin, self._begin, np.where(end, self._end, words))
        targets = np.where(begin | end, self._eos_id, words).astype(np.int32)
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
