"""A text, or two, and a number: how alike, how good, how long.

Metrics: squared error and correlation (`objectives/regression.py`).
Shape legend: B batch, C sequences of an example, T length.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.data.records import Record, field
from jaxnlp.data.tasks import task
from jaxnlp.data.tasks.inputs import Single
from jaxnlp.data.tasks.layout import EncoderLayout
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError


@dataclasses.dataclass(kw_only=True)
class RegressionTask:
    """Examples for `objectives.regress`. Fields as `Classification`'s; label: the field that holds the number."""

    inputs: Any = dataclasses.field(default_factory=Single)
    label: str = "label"
    layout: Any = dataclasses.field(default_factory=EncoderLayout)
    truncate: bool = False

    records = True
    unit = "examples"

    @property
    def num_sequences(self) -> int:
        return len(self.inputs.orders(self.layout))

    def resolved(self, source: Any) -> "RegressionTask":
        return self

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, tell: task.Tell, labelled: bool = True
    ) -> list[task.Example]:
        orders = self.inputs.orders(self.layout)
        rows = task.sequences(records, self.inputs.texts, orders, self, tokenizer, length, tell)
        labels = [self.gold(record) if labelled else 0 for record in records]
        return [task.Example(i, row, label) for i, (row, label) in enumerate(zip(rows, labels, strict=True))]

    def gold(self, record: Record) -> float:
        """A record's number."""
        setting = "data.examples.label"
        value = field(record, self.label, setting)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise FieldError(setting, self.label, f"{record.where} holds {value!r} there, expected a number")
        return number

    def answer(self, record: Record, examples: Sequence[Any], logits: np.ndarray) -> dict[str, Any]:
        return {"value": float(logits[0])}

    def gold_answer(self, record: Record) -> dict[str, Any]:
        return {"value": self.gold(record)}

    def shown(self, record: Record) -> str:
        return " | ".join(self.inputs.texts(record))

    def targets(self, examples: Sequence[Any]) -> list[Any]:
        return [example.label for example in examples]

    def open(self, store: Any, tokenizer: Tokenizer | None, config: Any) -> task.TaskReader:
        return task.TaskReader(self, store, tokenizer, config.seq_len)

    def batch(self, examples: Sequence[Any], length: int, fill: int) -> dict[str, np.ndarray]:
        """As `task.stack`, and `labels` (B,) float32."""
        batch = task.stack(examples, self.num_sequences, length, fill, self.layout.language_model)
        return {**batch, "labels": np.asarray([e.label if e else 0.0 for e in examples], np.float32)}

    def shapes(self, config: Any) -> dict[str, Any]:
        """As `Packed.shapes`."""
        return task.shapes(self.num_sequences, config.seq_len, np.float32, self.layout.language_model)

    def predicted(self, config: Any) -> float:
        """As `Packed.predicted`: all of them, by a decoder's auxiliary loss."""
        return float(self.layout.language_model)
