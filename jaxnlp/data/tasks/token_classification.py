"""A tag for each word: names, parts of speech. The first piece of a word has its label, the others have none.

Devlin et al. 2019, arXiv:1810.04805, section 5.3.
Metrics: cross-entropy and accuracy a word (`objectives/token_classification.py`).
Shape legend: B batch, T length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.data.records import Record, field
from jaxnlp.data.tasks import task
from jaxnlp.data.tasks.classes import check_classes, class_of, found_classes
from jaxnlp.data.tasks.layout import EncoderLayout, overhead
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError

WORDS, TAGS = "data.examples.words", "data.examples.tags"


@dataclasses.dataclass(frozen=True)
class FirstPieces:
    """Of the words that have pieces, (W,) each: their numbers, the places of their first pieces, their classes."""

    words: np.ndarray
    places: np.ndarray
    classes: np.ndarray


@dataclasses.dataclass(kw_only=True)
class TokenClassificationTask:
    """Examples for `objectives.tag`.

    words, tags: the fields that hold a list of each, as long as each other; a text is split at white space.
    classes: the tags in order; () takes the train split's, sorted.
    joiner: what stands before each word but the first, so that its pieces are those it has in a text.
    layout: as `Classification`'s. truncate: leave out the last words of what is longer than data.seq_len.
    """

    words: str = "words"
    tags: str = "tags"
    classes: tuple[str, ...] = ()
    joiner: str = " "
    layout: Any = dataclasses.field(default_factory=EncoderLayout)
    truncate: bool = False

    records = True
    unit = "words"

    def check(self) -> None:
        check_classes(self.classes)

    @property
    def num_classes(self) -> int | None:
        return len(self.classes) or None

    def resolved(self, source: Any) -> "TokenClassificationTask":
        return self if self.classes else dataclasses.replace(self, classes=found_classes(source, self.tags, TAGS))

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, tell: task.Tell, labelled: bool = True
    ) -> list[task.Example]:
        specials, fits = self.layout.specials(tokenizer), task.Fit(length, self.truncate)
        room, found, nothing = task.room_of(length, overhead(self.layout, 1, specials)), [], 0
        for part in task.chunks(records, tell):
            given = [self.listed(record, self.words, WORDS) for record in part]
            texts = [self.joiner * (i > 0) + word for words in given for i, word in enumerate(words)]
            ids = iter(tokenizer.encode_batch(texts))
            for record, words in zip(part, given, strict=True):
                pieces = [next(ids) for _ in words]
                (tokens,) = fits(record, [[token for piece in pieces for token in piece]], room)
                sequence = self.layout.sequence([tokens], specials)
                starts = np.cumsum([0, *map(len, pieces)])[:-1]
                kept = np.asarray([len(piece) > 0 for piece in pieces]) & (starts < len(tokens))
                nothing += sum(not piece for piece in pieces)
                places = (starts + sequence.begins[0])[kept].astype(np.int32)
                classes = np.asarray(self.gold(record) if labelled else [0] * len(words), np.int32)[kept]
                label = FirstPieces(np.flatnonzero(kept), places, classes)
                found.append(task.Example(len(found), (sequence,), label))
        fits.done(tell)
        if nothing:
            tell(f"note: {nothing:,} words are nothing to this tokenizer and have no tag")
        return found

    def gold(self, record: Record) -> list[int]:
        """The classes of a record's words."""
        words, tags = self.listed(record, self.words, WORDS), self.listed(record, self.tags, TAGS)
        if len(words) != len(tags):
            raise FieldError(TAGS, self.tags, f"{record.where} has {len(words)} words and {len(tags)} tags")
        return [class_of(tag, record, TAGS, self.tags, self.classes) for tag in tags]

    def answer(self, record: Record, examples: Sequence[Any], logits: np.ndarray) -> dict[str, Any]:
        """The tags of the words, None for one that was cut away or is nothing to the tokenizer."""
        words = self.listed(record, self.words, WORDS)
        (example,), (logits_TN,) = examples, logits
        tags: list[str | None] = [None] * len(words)
        for word, place in zip(example.label.words, example.label.places, strict=True):
            tags[word] = self.classes[int(np.argmax(logits_TN[place]))]
        return {"tags": tags}

    def gold_answer(self, record: Record) -> dict[str, Any]:
        return {"tags": [self.classes[k] for k in self.gold(record)]}

    def shown(self, record: Record) -> str:
        return self.joiner.join(self.listed(record, self.words, WORDS))

    def targets(self, examples: Sequence[Any]) -> list[Any]:
        return [label for example in examples for label in example.label.classes.tolist()]

    def listed(self, record: Record, name: str, setting: str) -> list[Any]:
        value = field(record, name, setting)
        found = value.split() if isinstance(value, str) else value
        if not isinstance(found, (list, tuple)) or not found or not all(isinstance(x, (str, int)) for x in found):
            raise FieldError(setting, name, f"{record.where} holds {value!r} there, expected a list of one or more")
        return list(found)

    def open(self, store: Any, tokenizer: Tokenizer | None, config: Any) -> task.TaskReader:
        return task.TaskReader(self, store, tokenizer, config.seq_len)

    def batch(self, examples: Sequence[Any], length: int, fill: int) -> dict[str, np.ndarray]:
        """`tokens`, `segment_ids`, `types`, `labels` (B, T) int32; `weights` (B, T), 1 on first pieces."""
        rows = task.stack(examples, 1, length, fill, language_model=False)
        batch = {name: rows[name][:, 0] for name in ("tokens", "segment_ids", "types")}
        batch["labels"] = np.zeros((len(examples), length), np.int32)
        batch["weights"] = np.zeros((len(examples), length), np.float32)
        for i, example in enumerate(examples):
            if example is not None:
                places = example.label.places
                batch["labels"][i, places], batch["weights"][i, places] = example.label.classes, 1.0
        return batch

    def shapes(self, config: Any) -> dict[str, Any]:
        """As `Packed.shapes`."""
        T = config.seq_len
        found: dict[str, Any] = dict.fromkeys(("tokens", "segment_ids", "types", "labels"), ((T,), np.int32))
        return found | {"weights": ((T,), np.float32)}

    def predicted(self, config: Any) -> float:
        """As `Packed.predicted`."""
        return 0.0
