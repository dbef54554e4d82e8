"""A context and several options, one of which is right: each is a sequence, and the model scores them all.

Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.4. Metrics: cross-entropy and accuracy
(`objectives/multiple_choice.py`).
Shape legend: B batch, C options, T length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.data.records import Record, field, text_field
from jaxnlp.data.tasks import task
from jaxnlp.data.tasks.layout import EncoderLayout
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError


@dataclasses.dataclass(kw_only=True)
class MultipleChoiceTask:
    """Examples for `objectives.choice`.

    context: the field of the text before the options.
    options: the field that holds their list, or the fields that hold one each.
    num_options: how many each record has.
    label: the field that holds the number of the right one, from 0.
    layout: as `Classification`'s. truncate: cut contexts that are too long; options are never cut, or some would be
        alike.
    """

    context: str = "context"
    options: tuple[str, ...] = ("options",)
    num_options: int = 4
    label: str = "label"
    layout: Any = dataclasses.field(default_factory=EncoderLayout)
    truncate: bool = False

    records = True
    keeps_last = True
    unit = "examples"

    def check(self) -> None:
        if self.num_options < 2:
            raise FieldError("num_options", self.num_options, "expected two or more")
        if len(self.options) not in (1, self.num_options):
            several = f"num_options={self.num_options} that hold one each"
            raise FieldError("options", self.options, f"expected one field that holds a list, or {several}")

    @property
    def num_sequences(self) -> int:
        return self.num_options

    def resolved(self, source: Any) -> "MultipleChoiceTask":
        return self

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, tell: task.Tell, labelled: bool = True
    ) -> list[task.Example]:
        orders = [(0, 1 + k) for k in range(self.num_options)]
        rows = task.sequences(records, self.texts, orders, self, tokenizer, length, tell)
        labels = [self.gold(record) if labelled else 0 for record in records]
        return [task.Example(i, row, label) for i, (row, label) in enumerate(zip(rows, labels, strict=True))]

    def texts(self, record: Record) -> list[str]:
        """The context, and the options."""
        context = text_field(record, self.context, "data.examples.context")
        setting = "data.examples.options"
        if len(self.options) > 1:
            return [context, *(text_field(record, name, setting) for name in self.options)]
        name = next(iter(self.options))
        found = field(record, name, setting)
        whole = isinstance(found, (list, tuple)) and all(isinstance(x, str) and x.strip() for x in found)
        if not whole or len(found) != self.num_options:
            raise FieldError(
                setting, name, f"{record.where} holds {found!r} there, expected a list of {self.num_options} texts"
            )
        return [context, *found]

    def gold(self, record: Record) -> int:
        """The number of a record's right option."""
        setting = "data.examples.label"
        value = field(record, self.label, setting)
        number = int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) else -1
        if not 0 <= number < self.num_options:
            raise FieldError(
                setting,
                self.label,
                f"{record.where} holds {value!r} there, expected the number of an option, 0 to {self.num_options - 1}",
            )
        return number

    def answer(self, record: Record, examples: Sequence[Any], logits: np.ndarray) -> dict[str, Any]:
        (shares,) = task.softmax(logits)
        return {"option": int(np.argmax(shares)), "probabilities": [float(share) for share in shares]}

    def gold_answer(self, record: Record) -> dict[str, Any]:
        return {"option": self.gold(record)}

    def shown(self, record: Record) -> str:
        context, *options = self.texts(record)
        return " | ".join([context, *(f"{i}: {option}" for i, option in enumerate(options))])

    def targets(self, examples: Sequence[Any]) -> list[Any]:
        return [example.label for example in examples]

    def open(self, store: Any, tokenizer: Tokenizer | None, config: Any) -> task.TaskReader:
        return task.TaskReader(self, store, tokenizer, config.seq_len)

    def batch(self, examples: Sequence[Any], length: int, fill: int) -> dict[str, np.ndarray]:
        """As `task.stack`, and `labels` (B,) int32."""
        batch = task.stack(examples, self.num_options, length, fill, self.layout.language_model)
        return {**batch, "labels": np.asarray([e.label if e else 0 for e in examples], np.int32)}

    def shapes(self, config: Any) -> dict[str, Any]:
        """As `Packed.shapes`."""
        return task.shapes(self.num_options, config.seq_len, np.int32, self.layout.language_model)

    def predicted(self, config: Any) -> float:
        """As `Packed.predicted`: all of them, by a decoder's auxiliary loss."""
        return float(self.layout.language_model)
