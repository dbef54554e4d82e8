"""A text, or two, and a class: topics, sentiment, entailment, paraphrase.

Metrics: cross-entropy and accuracy (`objectives/sequence_classification.py`).
Shape legend: B batch, C sequences of an example, T length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.data.records import Record, field
from jaxnlp.data.tasks import task
from jaxnlp.data.tasks.classes import check_classes, class_of, found_classes
from jaxnlp.data.tasks.inputs import Single
from jaxnlp.data.tasks.layout import EncoderLayout
from jaxnlp.data.tokenizer import Tokenizer


@dataclasses.dataclass(kw_only=True)
class SequenceClassificationTask:
    """Examples for `objectives.classify`.

    inputs: Single(...), Pair(...) or Unordered(...), which name the fields of the texts.
    label: the field that holds the class: a text or a whole number.
    classes: their names in order; () takes the train split's, sorted.
    layout: EncoderLayout(), RobertaLayout() or DecoderLayout().
    truncate: cut what is longer than data.seq_len, the longest text first, and say how many were; False is an error.
    """

    inputs: Any = dataclasses.field(default_factory=Single)
    label: str = "label"
    classes: tuple[str, ...] = ()
    layout: Any = dataclasses.field(default_factory=EncoderLayout)
    truncate: bool = False

    records = True
    unit = "examples"

    def check(self) -> None:
        check_classes(self.classes)

    @property
    def num_classes(self) -> int | None:
        return len(self.classes) or None

    @property
    def num_sequences(self) -> int:
        return len(self.inputs.orders(self.layout))

    def resolved(self, source: Any) -> "SequenceClassificationTask":
        return self if self.classes else dataclasses.replace(self, classes=found_classes(source, self.label))

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, tell: task.Tell, labelled: bool = True
    ) -> list[task.Example]:
        orders = self.inputs.orders(self.layout)
        rows = task.sequences(records, self.inputs.texts, orders, self, tokenizer, length, tell)
        labels = [self.gold(record) if labelled else 0 for record in records]
        return [task.Example(i, row, label) for i, (row, label) in enumerate(zip(rows, labels, strict=True))]

    def gold(self, record: Record) -> int:
        """The number of a record's class."""
        setting = "data.examples.label"
        return class_of(field(record, self.label, setting), record, setting, self.label, self.classes)

    def answer(self, record: Record, examples: Sequence[Any], logits: np.ndarray) -> dict[str, Any]:
        (shares,) = task.softmax(logits)
        label = self.classes[int(np.argmax(shares))]
        return {"label": label, "probabilities": dict(zip(self.classes, map(float, shares), strict=True))}

    def gold_answer(self, record: Record) -> dict[str, Any]:
        return {"label": self.classes[self.gold(record)]}

    def shown(self, record: Record) -> str:
        return " | ".join(self.inputs.texts(record))

    def targets(self, examples: Sequence[Any]) -> list[Any]:
        return [example.label for example in examples]

    def open(self, store: Any, tokenizer: Tokenizer | None, config: Any) -> task.TaskReader:
        return task.TaskReader(self, store, tokenizer, config.seq_len)

    def batch(self, examples: Sequence[Any], length: int, fill: int) -> dict[str, np.ndarray]:
        """As `task.stack`, and `labels` (B,) int32."""
        batch = task.stack(examples, self.num_sequences, length, fill, self.layout.language_model)
        return {**batch, "labels": np.asarray([e.label if e else 0 for e in examples], np.int32)}

    def shapes(self, config: Any) -> dict[str, Any]:
        """As `Packed.shapes`."""
        return task.shapes(self.num_sequences, config.seq_len, np.int32, self.layout.language_model)

    def predicted(self, config: Any) -> float:
        """As `Packed.predicted`: all of them, by a decoder's auxiliary loss."""
        return float(self.layout.language_model)
