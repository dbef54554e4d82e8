"""Classification of one or two texts: topic, sentiment, entailment (`objectives/sequence_classification.py`)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxnlp.data.records import field
from jaxnlp.data.source import Record, Source
from jaxnlp.data.tasks.classes import check_classes, class_index, classes_of
from jaxnlp.data.tasks.encoding import Example, softmax
from jaxnlp.data.tasks.inputs import Inputs, Single
from jaxnlp.data.tasks.labelled_task import Prediction, SequenceTask
from jaxnlp.metrics.classification import classification
from jaxnlp.metrics.metric import Scores


@dataclasses.dataclass(kw_only=True)
class SequenceClassificationTask(SequenceTask):
    """Examples for `objectives.sequence_classification`. label: the field of the class, a text or an integer.

    inputs: Single(...), Pair(...) or Unordered(...), which name the fields of the texts.
    classes: class names, in order. () uses the sorted labels of the train split.
    """

    inputs: Inputs = dataclasses.field(default_factory=Single)
    classes: tuple[str, ...] = ()

    def check(self) -> None:
        check_classes(self.classes)

    def resolved(self, source: Source) -> "SequenceClassificationTask":
        return self if self.classes else dataclasses.replace(self, classes=classes_of(source, self.label))

    def texts(self, record: Record) -> list[str]:
        return self.inputs.texts(record)

    def orders(self) -> list[tuple[int, ...]]:
        return self.inputs.orders(self.layout)

    def target(self, record: Record) -> int:
        setting = "data.task.label"
        return class_index(field(record, self.label, setting), record, setting, self.label, self.classes)

    def decode(self, record: Record, examples: Sequence[Example], outputs: np.ndarray) -> Prediction:
        (probabilities,) = softmax(outputs)
        label = self.classes[int(np.argmax(probabilities))]
        return {"label": label, "probabilities": dict(zip(self.classes, map(float, probabilities), strict=True))}

    def reference(self, record: Record) -> Prediction:
        return {"label": self.classes[self.target(record)]}

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Prediction]) -> Scores:
        return classification([p["label"] for p in predictions], [r["label"] for r in references])

    @property
    def text_field(self) -> str | None:
        return self.inputs.text_field
