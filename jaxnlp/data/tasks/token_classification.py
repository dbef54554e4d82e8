"""Token classification: a tag for each word, as in named-entity recognition and part-of-speech tagging.

The first piece of a word carries its label; the other pieces have no label.

Devlin et al. 2019, arXiv:1810.04805, section 5.3.
Metrics: cross-entropy and accuracy per word (`objectives/token_classification.py`).
Shape legend: B batch, T length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jaxnlp.data.records import field
from jaxnlp.data.source import Record, Source
from jaxnlp.data.task import Batch
from jaxnlp.data.tasks.classes import check_classes, class_index, classes_of
from jaxnlp.data.tasks.encoding import Example, Logger, Truncator, chunks, stack_examples, text_room
from jaxnlp.data.tasks.labelled_task import LabelledTask, Prediction
from jaxnlp.data.tasks.layout import EncoderLayout, Layout
from jaxnlp.data.tasks.offsets import word_pieces
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.metrics.metric import Scores
from jaxnlp.metrics.tagging import tagging

WORDS, TAGS = "data.task.words", "data.task.tags"


@dataclasses.dataclass(frozen=True)
class FirstPieces:
    """The W words that have pieces: their indices, the positions of their first pieces, their classes; (W,) each."""

    words: np.ndarray
    places: np.ndarray
    classes: np.ndarray


@dataclasses.dataclass(kw_only=True)
class TokenClassificationTask(LabelledTask):
    """Examples for `objectives.token_classification`.

    words, tags: the fields that hold the lists of words and of tags, of equal length. A string is split at white space.
    classes: the tags, in order. () uses the sorted tags of the train split.
    joiner: string put before each word except the first, so that a word has the same pieces as in running text.
    layout: as in `SequenceTask`. truncate: whether to drop the last words of records longer than data.seq_len; if
        False, such a record is an error.
    """

    unit: ClassVar[str] = "words"
    words: str = "words"
    tags: str = "tags"
    classes: tuple[str, ...] = ()
    joiner: str = " "
    layout: Layout = dataclasses.field(default_factory=EncoderLayout)
    truncate: bool = False

    def check(self) -> None:
        check_classes(self.classes)

    def resolved(self, source: Source) -> "TokenClassificationTask":
        return self if self.classes else dataclasses.replace(self, classes=classes_of(source, self.tags, TAGS))

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, log: Logger, labelled: bool = True
    ) -> list[Example]:
        special_ids, truncator = self.layout.special_ids(tokenizer), Truncator(length, self.truncate)
        room, examples, num_skipped = text_room(length, self.layout.overhead(1, special_ids)), [], 0
        for part in chunks(records, log):
            rows = [self.listed(record, self.words, WORDS) for record in part]
            for record, words, pieces in zip(part, rows, word_pieces(tokenizer, rows, self.joiner), strict=True):
                (tokens,) = truncator(record, [[token for piece in pieces for token in piece]], room)
                sequence = self.layout.sequence([tokens], special_ids)
                starts = np.cumsum([0, *map(len, pieces)])[:-1]
                is_labelled = np.asarray([len(piece) > 0 for piece in pieces]) & (starts < len(tokens))
                num_skipped += sum(not piece for piece in pieces)
                places = (starts + sequence.begins[0])[is_labelled].astype(np.int32)
                classes = np.asarray(self.targets(record) if labelled else [0] * len(words), np.int32)[is_labelled]
                label = FirstPieces(np.flatnonzero(is_labelled), places, classes)
                examples.append(Example(len(examples), (sequence,), label))
        truncator.report(log)
        if num_skipped:
            log(f"note: {num_skipped:,} words tokenize to zero tokens and were skipped")
        return examples

    def targets(self, record: Record) -> list[int]:
        """The class index of each word of a record. Raises FieldError if words and tags differ in number."""
        words, tags = self.listed(record, self.words, WORDS), self.listed(record, self.tags, TAGS)
        if len(words) != len(tags):
            raise FieldError(
                TAGS,
                self.tags,
                f"{record.where} has {len(words)} words and {len(tags)} tags; expected one tag per word",
            )
        return [class_index(tag, record, TAGS, self.tags, self.classes) for tag in tags]

    def decode(self, record: Record, examples: Sequence[Example], outputs: np.ndarray) -> Prediction:
        """The tags of the words; None for a word that was truncated away or has no tokens."""
        words = self.listed(record, self.words, WORDS)
        (example,), (logits_TN,) = examples, outputs
        tags: list[str | None] = [None] * len(words)
        for word, place in zip(example.label.words, example.label.places, strict=True):
            tags[word] = self.classes[int(np.argmax(logits_TN[place]))]
        return {"tags": tags}

    def reference(self, record: Record) -> Prediction:
        return {"tags": [self.classes[k] for k in self.targets(record)]}

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Prediction]) -> Scores:
        return tagging([p["tags"] for p in predictions], [r["tags"] for r in references], self.classes)

    def prompt(self, record: Record) -> str:
        return self.joiner.join(self.listed(record, self.words, WORDS))

    def label_keys(self, examples: Sequence[Example]) -> list[Any]:
        return [label for example in examples for label in example.label.classes.tolist()]

    def listed(self, record: Record, name: str, setting: str) -> list[Any]:
        value = field(record, name, setting)
        values = value.split() if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not values or not all(isinstance(x, (str, int)) for x in values):
            raise FieldError(setting, name, f"{record.where} holds {value!r}; expected a non-empty list")
        return list(values)

    def collate(self, examples: Sequence[Example | None], length: int, fill: int) -> Batch:
        """`tokens`, `segment_ids`, `token_type_ids`, `labels` and `weights` (B, T); the weight is 1 at first pieces."""
        rows = stack_examples(examples, 1, length, fill, language_model=False)
        batch = {name: rows[name][:, 0] for name in ("tokens", "segment_ids", "token_type_ids")}
        batch["labels"] = np.zeros((len(examples), length), np.int32)
        batch["weights"] = np.zeros((len(examples), length), np.float32)
        for i, example in enumerate(examples):
            if example is not None:
                places = example.label.places
                batch["labels"][i, places], batch["weights"][i, places] = example.label.classes, 1.0
        return batch
