"""Multiple choice: each option is joined with the context into a sequence, and the model scores all sequences.

Radford et al. 2018, section 3.3; Devlin et al. 2019, section 4.4 (`objectives/multiple_choice.py`).
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxnlp.data.records import field, text_field
from jaxnlp.data.source import Record
from jaxnlp.data.tasks.encoding import Example, softmax
from jaxnlp.data.tasks.labelled_task import Prediction, SequenceTask
from jaxnlp.errors import FieldError
from jaxnlp.metrics.classification import accuracy
from jaxnlp.metrics.metric import Scores


@dataclasses.dataclass(kw_only=True)
class MultipleChoiceTask(SequenceTask):
    """Examples for `objectives.multiple_choice`.

    context: the field of the text before the options.
    options: the field that holds the list of options, or one field for each option.
    num_options: number of options of each record.
    label: the field that holds the index of the correct option, from 0.
    truncate: whether to truncate contexts that are too long. Options are never truncated, since truncated options could
        become equal.
    """

    keeps_last: ClassVar[bool] = True
    context: str = "context"
    options: tuple[str, ...] = ("options",)
    num_options: int = 4

    def check(self) -> None:
        if self.num_options < 2:
            raise FieldError("num_options", self.num_options, "expected 2 or more")
        if len(self.options) not in (1, self.num_options):
            several = f"num_options={self.num_options} with one option each"
            raise FieldError("options", self.options, f"expected one field with a list, or {several}")

    def orders(self) -> list[tuple[int, ...]]:
        return [(0, 1 + k) for k in range(self.num_options)]

    def texts(self, record: Record) -> list[str]:
        """The context, followed by the options."""
        context = text_field(record, self.context, "data.task.context")
        setting = "data.task.options"
        if len(self.options) > 1:
            return [context, *(text_field(record, name, setting) for name in self.options)]
        name = next(iter(self.options))
        options = field(record, name, setting)
        valid = isinstance(options, (list, tuple)) and all(isinstance(x, str) and x.strip() for x in options)
        if not valid or len(options) != self.num_options:
            raise FieldError(
                setting, name, f"{record.where} holds {options!r}; expected a list of {self.num_options} texts"
            )
        return [context, *options]

    def target(self, record: Record) -> int:
        setting = "data.task.label"
        value = field(record, self.label, setting)
        index = int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) else -1
        if not 0 <= index < self.num_options:
            raise FieldError(
                setting,
                self.label,
                f"{record.where} holds {value!r}; expected the index of an option, 0 to {self.num_options - 1}",
            )
        return index

    def prompt(self, record: Record) -> str:
        context, *options = self.texts(record)
        return " | ".join([context, *(f"{i}: {option}" for i, option in enumerate(options))])

    def candidates(self, record: Record) -> tuple[str, list[str]]:
        context, *options = self.texts(record)
        return context, options

    def decode(self, record: Record, examples: Sequence[Example], outputs: np.ndarray) -> Prediction:
        (probabilities,) = softmax(outputs)
        return {"option": int(np.argmax(probabilities)), "probabilities": [float(p) for p in probabilities]}

    def reference(self, record: Record) -> Prediction:
        return {"option": self.target(record)}

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Prediction]) -> Scores:
        return accuracy([p["option"] for p in predictions], [r["option"] for r in references])
