"""The base classes of evaluators. The kinds have a file each: loss, predictions, generations and rankings.

An evaluator is a config object in `Experiment.evaluators`. A run calls it every `Evaluator.every` steps and at the end;
the command `experiments.evaluate` calls it on a trained run. Evaluators run on any mesh and in any number of processes,
all of which must call them. Every example is counted once.
"""

import abc
import dataclasses
import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig, open_split
from jaxnlp.data.record_store import RecordStore
from jaxnlp.data.records import with_results
from jaxnlp.data.source import Record, Source
from jaxnlp.data.tasks.labelled_task import LabelledTask, Prediction
from jaxnlp.data.text.sources import check_split
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.inference.decode import Generator
from jaxnlp.metrics.metric import Metric, Scores, bootstrap_interval, metric_named
from jaxnlp.trees import Params

if TYPE_CHECKING:
    from jaxnlp.training.step.program import Program

Store = TokenStore | RecordStore


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """A model under evaluation.

    program: its `training.step.program.Program`.
    generator: returns its generator; raises UserError if the model cannot generate.
    stores: opened splits by name; other splits are opened when needed and added.
    between_batches: called between batches; may raise an exception to interrupt the evaluation.
    log: called with messages.
    """

    program: "Program"
    params: Params
    tokenizer: Tokenizer
    generator: Callable[[], Generator]
    stores: dict[str, Store] = dataclasses.field(default_factory=dict)
    between_batches: Callable[[], object] = lambda: None
    log: Callable[[str], object] = lambda text: None

    @property
    def data(self) -> DataConfig:
        return self.program.experiment.data


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of an evaluation.

    metrics: by name. rows: for each record, its fields, "prediction" and "reference" as JSON values.
    """

    metrics: Scores
    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        # NumPy scalars cannot be written as JSON.
        object.__setattr__(self, "metrics", {name: float(value) for name, value in self.metrics.items()})


@dataclasses.dataclass(kw_only=True)
class Evaluator(abc.ABC):
    """Evaluates a model on a split. Subclasses define `evaluate`.

    name: prefix of its metrics in the log and in `Experiment.best`, as "squad" in "squad/f1:max".
    split: the split to evaluate on. source: its own data source; None is the run's.
    every: steps between evaluations; None is eval_every, or 0 if that is None too.
        `best` ranks only checkpoints of evaluated steps.
    limit: maximum number of records, or of batches for a loss; None is the full split.
    reads_records: whether it needs a source of records, also for a run on text.
    reads_data: whether it reads `source` or the run's data; False also evaluates an imported model.
    """

    reads_records: ClassVar[bool] = False
    reads_data: ClassVar[bool] = True
    name: str
    split: str = "validation"
    source: Source | None = None
    every: int | None = None
    limit: int | None = None

    def check(self) -> None:
        if not self.name or "/" in self.name or ":" in self.name:
            raise FieldError("name", self.name, "expected a name without / and :, such as 'squad'")
        check_split(self.split)
        if self.every is not None and self.every < 0:
            raise FieldError("every", self.every, "expected 0 or more steps, or None for eval_every")
        if self.limit is not None and self.limit < 1:
            raise FieldError("limit", self.limit, "expected 1 or more, or None for the full split")

    @abc.abstractmethod
    def evaluate(self, model: EvaluatedModel) -> Outcome:
        """The metrics, and the rows that they were computed from. With several processes, all must call it."""

    def run(self, model: EvaluatedModel) -> Scores:
        return self.evaluate(model).metrics

    def open(self, model: EvaluatedModel) -> tuple[DataConfig, Store]:
        """(the data config with this evaluator's source, the opened split)."""
        if self.source is None:
            data, key = model.data, self.split
        else:
            data, key = dataclasses.replace(model.data, source=self.source), f"{self.split} of {self.source}"
        if key not in model.stores:
            model.stores[key] = open_split(data, self.split, model.tokenizer, model.log)
        return data, model.stores[key]


@dataclasses.dataclass(kw_only=True)
class RecordEvaluator(Evaluator):
    """Base class of evaluators that predict labelled records.

    metrics: metrics in addition to the task's own, as "my_metrics:bleurt": functions of (predictions, references),
        called with the first value of each prediction and of each reference.
    bootstrap_samples: resamples for the 95% intervals `<metric>_low` and `<metric>_high`; 0 reports none.
    """

    reads_records: ClassVar[bool] = True
    metrics: tuple[str, ...] = ()
    bootstrap_samples: int = 0

    def check(self) -> None:
        super().check()
        if self.bootstrap_samples < 0:
            raise FieldError("bootstrap_samples", self.bootstrap_samples, "expected 0 or more, such as 1000")
        for name in self.metrics:
            metric_named(name)

    def records(self, model: EvaluatedModel) -> tuple[LabelledTask, RecordStore, list[Record]]:
        """The task, the opened split, and its records up to `limit`."""
        data, store = self.open(model)
        if not isinstance(data.task, LabelledTask) or not isinstance(store, RecordStore):
            expected = f"evaluator {self.name!r} needs a labelled task, such as SequenceClassificationTask()"
            raise FieldError("data.task", type(data.task).__name__, expected)
        return data.task, store, store.records[: self.limit]

    def records_of(self, model: EvaluatedModel, task: object, example: str) -> tuple[LabelledTask, list[Record]]:
        """A task of the evaluator's own, resolved, and the records of its source up to `limit`.

        Raises:
            FieldError: another kind of task or source, or no records. example: a task for the message.
        """
        source = self.source or model.data.source
        if not isinstance(task, LabelledTask) or not source.has_records:
            expected = f"{self.name!r}: expected a labelled task and source, as {example} and Records(...)"
            raise FieldError("task", type(task).__name__, expected)
        records = list(itertools.islice(source.records(self.split), self.limit))
        if not records:
            raise FieldError("source", type(source).__name__, f"{self.name!r}: the split {self.split!r} has no records")
        resolved: Any = task.resolved(source)
        return resolved, records

    def score(self, metric: Metric, predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
        """The metric's scores, with intervals if `bootstrap_samples` is positive."""
        scores = metric(predictions, references)
        if self.bootstrap_samples:
            intervals = bootstrap_interval(metric, predictions, references, self.bootstrap_samples)
            for name, (low, high) in intervals.items():
                scores |= {f"{name}_low": low, f"{name}_high": high}
        return scores

    def outcome(self, task: LabelledTask, records: list[Record], predictions: list[Prediction]) -> Outcome:
        """Scores of the predictions under the task's metrics and `metrics`, and a row per record."""
        references = [task.reference(record) for record in records]
        scores = self.score(task.metrics, predictions, references)
        first = [[next(iter(values.values())) for values in rows] for rows in (predictions, references)]
        for name in self.metrics:
            scores |= self.score(metric_named(name), *first)
        rows = zip(records, predictions, references, strict=True)
        return Outcome(scores, [row_of(*row) for row in rows])


def row_of(record: Record, prediction: Any, reference: Any) -> dict[str, Any]:
    """A row of an `Outcome`. The record's own fields of these names are renamed, as "record_prediction"."""
    return with_results(record.fields, {"prediction": prediction, "reference": reference})


def find(evaluators: Sequence[Evaluator], names: Sequence[str], field: str) -> list[Evaluator]:
    """The evaluators with these names, in that order; a name "module:name" is imported, as `evaluator_named` does.

    Raises FieldError, which names `field`, for an unknown name, or for two evaluators of one name.
    """
    by_name = {evaluator.name: evaluator for evaluator in evaluators}
    chosen: dict[str, Evaluator] = {}
    for name in names:
        imported = evaluator_named(name, field) if ":" in name else None
        if imported is not None and imported.name in by_name:
            expected = f"its name {imported.name!r} is that of another evaluator; rename it, as 'my_{imported.name}'"
            raise FieldError(field, name, expected)
        if imported is None and name not in by_name:
            expected = f"no evaluator {name!r}; expected module:name, or one of {', '.join(by_name)}"
            raise FieldError(field, ",".join(names), expected)
        evaluator = by_name[name] if imported is None else imported
        if evaluator.name in chosen:
            raise FieldError(field, ",".join(names), f"{evaluator.name!r} is listed twice; expected different names")
        chosen[evaluator.name] = evaluator
    return [*chosen.values()]


def evaluator_named(name: str, field: str) -> Evaluator:
    """Imports "module:name": an evaluator, or a function without arguments that returns one.

    Raises:
        FieldError: it cannot be imported, or is something else, or has an invalid field.
    """
    module, _, attribute = name.partition(":")
    try:
        imported = vars(importlib.import_module(module))[attribute]
    except (ImportError, ValueError, KeyError) as e:
        raise FieldError(field, name, f"cannot be imported ({e}); expected module:name of an evaluator") from None
    evaluator = imported() if inspect.isfunction(imported) and not inspect.signature(imported).parameters else imported
    if not isinstance(evaluator, Evaluator):
        kind = f"the class {evaluator.__name__}" if isinstance(evaluator, type) else type(evaluator).__name__
        expected = f"is {kind}; expected an Evaluator, or a function without arguments that returns one"
        raise FieldError(field, name, expected)
    configs.check(evaluator, f"{name}.")
    return evaluator
