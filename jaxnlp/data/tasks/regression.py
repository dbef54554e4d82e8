"""Regression: predicts a number from one or two texts, such as similarity or quality (`objectives/regression.py`)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxnlp.data.records import field
from jaxnlp.data.source import Record
from jaxnlp.data.tasks.encoding import Example
from jaxnlp.data.tasks.inputs import Inputs, Single
from jaxnlp.data.tasks.labelled_task import Prediction, SequenceTask
from jaxnlp.errors import FieldError
from jaxnlp.metrics.classification import correlation
from jaxnlp.metrics.metric import Scores


@dataclasses.dataclass(kw_only=True)
class RegressionTask(SequenceTask):
    """Examples for `objectives.regression`. label: the field of the number.

    inputs: as in `SequenceClassificationTask`.
    """

    label_dtype: ClassVar[type] = np.float32
    inputs: Inputs = dataclasses.field(default_factory=Single)

    def texts(self, record: Record) -> list[str]:
        return self.inputs.texts(record)

    def orders(self) -> list[tuple[int, ...]]:
        return self.inputs.orders(self.layout)

    def target(self, record: Record) -> float:
        setting = "data.task.label"
        value = field(record, self.label, setting)
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise FieldError(setting, self.label, f"{record.where} holds {value!r}; expected a number")
        return number

    def decode(self, record: Record, examples: Sequence[Example], outputs: np.ndarray) -> Prediction:
        return {"value": float(outputs[0])}

    def reference(self, record: Record) -> Prediction:
        return {"value": self.target(record)}

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Prediction]) -> Scores:
        return correlation([p["value"] for p in predictions], [r["value"] for r in references])

    @property
    def text_field(self) -> str | None:
        return self.inputs.text_field
