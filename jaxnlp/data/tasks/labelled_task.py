"""Base class of tasks over labelled records. A task encodes records as arrays and decodes model outputs.

A new task defines `encode`, `collate`, `prompt`, `decode`, `reference` and `metrics`; everything else is inherited.
`SequenceTask` implements `encode`, `collate` and `prompt` for tasks with one label for one or more sequences.
"""

import abc
import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxnlp.data.baselines import Baseline
from jaxnlp.data.record_store import RecordStore
from jaxnlp.data.samples import SampledModel
from jaxnlp.data.source import Record
from jaxnlp.data.task import Batch, Reader, Shapes, Task, require_tokenizer
from jaxnlp.data.tasks.encoding import Example, Logger, Truncator, encode_texts, stack_examples
from jaxnlp.data.tasks.layout import EncoderLayout, Layout
from jaxnlp.data.tasks.samples import answers_beside_references
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.metrics.metric import Scores
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.runtime import option

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig

Prediction = dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class LabelledTask(Task):
    """A task over records. A record may become several examples, such as the windows of a long context."""

    unit: ClassVar[str] = "examples"
    is_labelled: ClassVar[bool] = True
    output: ClassVar[str | None] = "logits"

    @abc.abstractmethod
    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, log: Logger, labelled: bool = True
    ) -> list[Example]:
        """Encodes records as examples, in order.

        Args:
            length: maximum sequence length, in tokens. log: called with notes and progress.
            labelled: whether the records have labels. If not, the labels of the examples are placeholders.

        Raises:
            FieldError: a record lacks a field or is too long.
        """

    @abc.abstractmethod
    def collate(self, examples: Sequence[Example | None], length: int, fill: int) -> Batch:
        """Collates examples into the arrays of a batch. None is a row of weight 0. `fill` is the padding token."""

    @abc.abstractmethod
    def prompt(self, record: Record) -> str:
        """The record as text, without its label, to display beside a prediction."""

    @abc.abstractmethod
    def decode(self, record: Record, examples: Sequence[Example], outputs: Any) -> Prediction:
        """Decodes model outputs into a prediction of JSON values.

        Args:
            examples: the examples of the record. outputs: the model's output for each example: logits, or with
                `output = "text"` the generated texts.
        """

    @abc.abstractmethod
    def reference(self, record: Record) -> Prediction:
        """The record's label, under the first key of the dict that `decode` returns."""

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Prediction]) -> Scores:
        """Computes the scores of the predictions of a split."""
        return {}

    def candidates(self, record: Record) -> tuple[str, list[str]]:
        """(the text before them, the candidates) of a record that a language model ranks; [] if there are none.

        The correct candidate is the value of `reference`: an index, or one of `classes`.
        """
        return self.prompt(record), list(self.classes)

    def open(self, store: Any, tokenizer: Tokenizer | None, config: "DataConfig") -> "RecordReader":
        return RecordReader(self, store, tokenizer, config.seq_len)

    def shapes(self, config: "DataConfig") -> Shapes:
        return {name: (x.shape[1:], x.dtype) for name, x in self.collate([None], config.seq_len, 0).items()}

    def predicted_fraction(self, config: "DataConfig") -> float:
        return 0.0

    def display(self, record: Record) -> str:
        """The prompt on one line."""
        return " ".join(self.prompt(record).split())

    def sample(self, model: SampledModel) -> list[str]:
        """Records beside the model's answers; for a task whose output is text, the default of `Task`."""
        return answers_beside_references(self, model) if self.output == "logits" else super().sample(model)

    def baselines(self, model: SampledModel) -> list[Baseline]:
        """The model that knows only the frequency of each answer in the split.

        Its loss is their entropy, and its accuracy that of the most frequent answer. For numbers it predicts their
        mean, and its loss is their variance. For a task whose output is text, the default of `Task`.
        """
        if self.output != "logits":
            return super().baselines(model)
        labels = self.label_keys(model.store.encoded(self, model.tokenizer, model.data.seq_len))
        if isinstance(labels[0], float):
            return [Baseline("always the mean", float(np.var(labels)))]
        counts = np.asarray(list(collections.Counter(labels).values()))
        shares = counts / counts.sum()
        entropy = float(-(shares * np.log(shares)).sum())
        return [Baseline("always the most frequent answer", entropy, accuracy=float(shares.max()))]

    def next_commands(self, model: ModelConfig, prompt: str) -> list[tuple[str, str, str]]:
        if self.output != "logits":
            return super().next_commands(model, prompt)
        if self.text_field is None:  # `predict` needs a file of records
            return [("predict", "evaluate", "--split=test --predictions=predictions.jsonl")]
        return [("predict", "predict", option("text", prompt)), *super().next_commands(model, prompt)]

    def label_keys(self, examples: Sequence[Example]) -> list[Any]:
        """The labels as numbers or hashable values, for the baseline that uses their frequencies."""
        return [example.label for example in examples]

    @property
    def text_field(self) -> str | None:
        """The field of the text, or None if the task reads several texts."""
        return None


class RecordReader(Reader):
    """The examples of a `RecordStore`."""

    def __init__(self, task: LabelledTask, store: Any, tokenizer: Tokenizer | None, length: int):
        tokenizer = require_tokenizer(tokenizer)
        if not isinstance(store, RecordStore):
            raise FieldError("data.source", str(store.path), f"contains text; {type(task).__name__}() needs records")
        self.task, self.length, self.fill = task, length, tokenizer.eos_id
        self._examples = store.encoded(task, tokenizer, length)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[int(index)]

    def batch(self, records: Sequence[Example | None], indices: Sequence[int]) -> Batch:
        return self.task.collate(records, self.length, self.fill)


@dataclasses.dataclass(kw_only=True)
class SequenceTask(LabelledTask):
    """One label for one or more sequences. A new task defines `texts`, `target`, `decode`, `reference` and `metrics`.

    label: the field that holds the label.
    layout: EncoderLayout(), RobertaLayout() or DecoderLayout().
    truncate: whether to truncate records longer than data.seq_len, the longest text first, and log their number. If
        False, such a record is an error.
    """

    label: str = "label"
    layout: Layout = dataclasses.field(default_factory=EncoderLayout)
    truncate: bool = False

    label_dtype: ClassVar[type] = np.int32
    keeps_last: ClassVar[bool] = False  # never truncate the last text of a sequence

    @abc.abstractmethod
    def texts(self, record: Record) -> list[str]:
        """The texts of a record."""

    @abc.abstractmethod
    def target(self, record: Record) -> int | float:
        """The label as a number of dtype `label_dtype`."""

    def orders(self) -> list[tuple[int, ...]]:
        """For each sequence of an example, the indices of its texts."""
        return [(0,)]

    @property
    def num_sequences(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.orders())

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, log: Logger, labelled: bool = True
    ) -> list[Example]:
        truncator = Truncator(length, self.truncate, keeps_last=self.keeps_last)
        rows = encode_texts(records, self.texts, self.orders(), self.layout, tokenizer, truncator, log)
        labels = [self.target(record) if labelled else 0 for record in records]
        return [Example(i, row, label) for i, (row, label) in enumerate(zip(rows, labels, strict=True))]

    def collate(self, examples: Sequence[Example | None], length: int, fill: int) -> Batch:
        """The arrays of `stack`, and `labels` (B,) of dtype `label_dtype`."""
        batch = stack_examples(examples, self.num_sequences, length, fill, self.layout.language_model)
        return {**batch, "labels": np.asarray([e.label if e else 0 for e in examples], self.label_dtype)}

    def prompt(self, record: Record) -> str:
        return " | ".join(self.texts(record))

    def predicted_fraction(self, config: "DataConfig") -> float:
        """1 if the layout has targets for a decoder's auxiliary language-model loss, else 0."""
        return float(self.layout.language_model)
