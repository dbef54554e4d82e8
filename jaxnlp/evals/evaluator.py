"""The base class of evaluators, and the four kinds: loss, predictions, generated texts, ranked candidates.

An evaluator is a config object in `Experiment.evaluators`. A run calls it every `Evaluator.every` steps and at the end;
the command `experiments.evaluate` calls it on a trained run. Evaluators run on any mesh and in any number of processes,
all of which must call them. Every example is counted once.
"""

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from jaxnlp.data.pipeline import DataConfig, eval_batches, open_split
from jaxnlp.data.record_store import RecordStore
from jaxnlp.data.source import Record, Source
from jaxnlp.data.tasks.labelled_task import LabelledTask, Prediction
from jaxnlp.data.text.sources import check_split
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.loss import evaluate
from jaxnlp.evals.predictions import predict
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.scoring import LENGTH_MULTIPLE, filled, score_continuations
from jaxnlp.metrics.metric import Metric, Scores, bootstrap_interval, metric_named
from jaxnlp.metrics.ranking import ranking
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


@dataclasses.dataclass(kw_only=True)
class Evaluator(abc.ABC):
    """Evaluates a model on a split. Subclasses define `evaluate`.

    name: prefix of its metrics in the log and in `Experiment.best`, as "squad" in "squad/f1:max".
    split: the split to evaluate on. source: its own data source; None is the run's.
    every: steps between evaluations; None is eval_every. `best` ranks only checkpoints of evaluated steps.
    limit: maximum number of records, or of batches for a loss; None is the full split.
    reads_records: whether it needs a source of records, also for a run on text.
    """

    reads_records: ClassVar[bool] = False
    name: str
    split: str = "validation"
    source: Source | None = None
    every: int | None = None
    limit: int | None = None

    def check(self) -> None:
        if not self.name or "/" in self.name or ":" in self.name:
            raise FieldError("name", self.name, "expected a name without / and :, as 'squad'")
        check_split(self.split)
        if self.every is not None and self.every < 0:
            raise FieldError("every", self.every, "expected zero or more steps, or None for eval_every")
        if self.limit is not None and self.limit < 1:
            raise FieldError("limit", self.limit, "expected a positive number, or None for the full split")

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
class LossEvaluator(Evaluator):
    """The loss and the objective's metrics over a split."""

    def evaluate(self, model: EvaluatedModel) -> Outcome:
        data, store = self.open(model)
        program = model.program
        objective = program.experiment.objective
        per_token = store.bytes_per_token if objective.reports_bits_per_byte else None
        batches = eval_batches(store, data, self.limit, program.local_row_indices, model.tokenizer)
        return Outcome(evaluate(program.eval_step, model.params, _placed(model, batches), objective, per_token))


def _placed(model: EvaluatedModel, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        model.between_batches()
        yield model.program.shard_batch(batch)


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
            raise FieldError("bootstrap_samples", self.bootstrap_samples, "expected zero or more, as 1000")
        for name in self.metrics:
            metric_named(name)

    def records(self, model: EvaluatedModel) -> tuple[LabelledTask, RecordStore, list[Record]]:
        """The task, the opened split, and its records up to `limit`."""
        data, store = self.open(model)
        if not isinstance(data.task, LabelledTask) or not isinstance(store, RecordStore):
            expected = f"{self.name} needs a task over labelled records, as SequenceClassificationTask()"
            raise FieldError("data.task", type(data.task).__name__, expected)
        return data.task, store, store.records[: self.limit]

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
        return Outcome(scores, [{**r.fields, "prediction": p, "reference": right} for r, p, right in rows])


@dataclasses.dataclass(kw_only=True)
class PredictionEvaluator(RecordEvaluator):
    """The task's metrics of a head's predictions, e.g. exact match and F1 of answers, or F1 of entities."""

    def evaluate(self, model: EvaluatedModel) -> Outcome:
        task, store, records = self.records(model)
        if task.output != "logits":
            raise FieldError("data.task", type(task).__name__, f"{self.name} needs a head; use GenerationEvaluator")
        examples = store.encoded(task, model.tokenizer, model.data.seq_len)
        chosen = [example for example in examples if example.record < len(records)]
        predictions = []
        for prediction in predict(model.program, model.params, model.tokenizer, records, chosen):
            model.between_batches()
            predictions.append(prediction)
        return self.outcome(task, records, predictions)


@dataclasses.dataclass(kw_only=True)
class GenerationEvaluator(RecordEvaluator):
    """The task's metrics of greedily generated texts, e.g. BLEU of translations.

    max_new_tokens: maximum number of tokens per text; None is the length of the task's targets.
    """

    max_new_tokens: int | None = None

    def evaluate(self, model: EvaluatedModel) -> Outcome:
        task, _, records = self.records(model)
        if task.output != "text":
            raise FieldError("data.task", type(task).__name__, f"{self.name} needs a task whose output is text")
        generator, data = dataclasses.replace(model.generator(), length_multiple=LENGTH_MULTIPLE), model.data
        prompts = [ids[: data.seq_len - 1] for ids in model.tokenizer.encode_batch([task.prompt(r) for r in records])]
        predictions = []
        for start in range(0, len(prompts), data.batch_size):
            model.between_batches()
            rows = prompts[start : start + data.batch_size]
            batch = filled(rows, data.batch_size)
            length = self.max_new_tokens or task.shapes(data)["targets"][0][0]
            texts = generator(model.params, batch, generator.fit_max_new_tokens(batch, length))
            for record, ids in zip(records[start:], texts[: len(rows)], strict=False):
                predictions.append(task.decode(record, [], [model.tokenizer.decode(ids)]))
        return self.outcome(task, records, predictions)


@dataclasses.dataclass(kw_only=True)
class RankingEvaluator(RecordEvaluator):
    """Accuracy, mean reciprocal rank and recall@k of ranked candidates (`metrics/ranking.py`).

    A model with a head ranks by the probabilities that its task predicts. A language model ranks by the log-probability
    of each candidate after its prompt, as `jaxnlp.Model.score` computes it (Brown et al. 2020, section 2.4).

    task: for a language model, how the records are read, as MultipleChoiceTask(num_options=4) or
        SequenceClassificationTask(), whose candidates are the class names; None: the run's task.
    separator: for a language model, the text between prompt and candidate. It is scored with the candidate.
    normalize: for a language model, "none" ranks by the sum over the tokens that are scored; "tokens" divides it by
        their number, "bytes" by the length of the candidate without the separator.
    metrics: called with the scores of each record's candidates and the index of the correct one.
    """

    task: LabelledTask | None = None
    separator: str = " "
    normalize: str = "none"

    def check(self) -> None:
        super().check()
        if self.normalize not in ("none", "tokens", "bytes"):
            raise FieldError("normalize", self.normalize, "expected none, tokens or bytes")

    def evaluate(self, model: EvaluatedModel) -> Outcome:
        with_head = model.program.experiment.model.head is not None
        records, predictions, scores, right = (self.by_head if with_head else self.by_language_model)(model)
        results = self.score(ranking, scores, right)
        for name in self.metrics:
            results |= self.score(metric_named(name), scores, right)
        rows = zip(records, predictions, right, strict=True)
        return Outcome(results, [{**r.fields, "prediction": p, "reference": index} for r, p, index in rows])

    def by_head(self, model: EvaluatedModel) -> "Ranked":
        """The records, and the scores of their candidates under a head."""
        task, store, records = self.records(model)
        if self.task is not None:
            raise FieldError("task", type(self.task).__name__, f"{self.name}: a model with a head reads the run's task")
        examples = store.encoded(task, model.tokenizer, model.data.seq_len)
        chosen = [example for example in examples if example.record < len(records)]
        ranked = Ranked(records, [], [], [])
        for prediction in predict(model.program, model.params, model.tokenizer, records, chosen):
            model.between_batches()
            scores = prediction.get("probabilities")
            if scores is None:
                expected = f"{self.name}: predicts no probabilities of candidates; expected MultipleChoiceTask()"
                raise FieldError("data.task", type(task).__name__, expected)
            names = list(scores) if isinstance(scores, dict) else []
            ranked.predictions.append(prediction)
            ranked.scores.append(list(scores.values()) if isinstance(scores, dict) else scores)
            ranked.right.append(_index(task.reference(records[len(ranked.right)]), names))
        return ranked

    def by_language_model(self, model: EvaluatedModel) -> "Ranked":
        """The records, and the scores of their candidates under a language model."""
        generator, source = model.generator(), self.source or model.data.source
        task: Any = model.data.task if self.task is None else self.task
        if not isinstance(task, LabelledTask) or not source.has_records:
            expected = f"{self.name}: ranks labelled records; give it task=MultipleChoiceTask() and source=Records(...)"
            raise FieldError("task", type(task).__name__, expected)
        task = task.resolved(source)
        records = list(itertools.islice(source.records(self.split), self.limit))
        rows = [task.candidates(record) for record in records]
        if not all(candidates for _, candidates in rows):
            raise FieldError("task", type(task).__name__, f"{self.name}: has no candidates to rank")
        pairs = [(prompt, self.separator + text) for prompt, candidates in rows for text in candidates]
        prompts, texts = (model.tokenizer.encode_batch(list(part)) for part in zip(*pairs, strict=True))
        size, params = model.data.batch_size, model.params
        log_probs = iter(score_continuations(generator, params, prompts, texts, size, model.between_batches))
        ranked = Ranked(records, [], [], [])
        for record, (_, candidates) in zip(records, rows, strict=True):
            scores = [self._normalized(text, next(log_probs)) for text in candidates]
            ranked.predictions.append({"candidate": int(np.argmax(scores)), "scores": scores})
            ranked.scores.append(scores)
            ranked.right.append(_index(task.reference(record), candidates))
        return ranked

    def _normalized(self, text: str, log_probs: list[float]) -> float:
        lengths = {"none": 1, "tokens": len(log_probs), "bytes": len(text.encode())}
        return sum(log_probs) / max(1, lengths[self.normalize])


class Ranked(NamedTuple):
    """Records with the scores of their candidates, and the index of the correct one."""

    records: list[Record]
    predictions: list[Prediction]
    scores: list[Sequence[float]]
    right: list[int]


def _index(reference: Prediction, names: Sequence[str]) -> int:
    """The index of the correct candidate: a reference is an index itself, or one of the names."""
    right = next(iter(reference.values()))
    return names.index(right) if isinstance(right, str) else int(right)


def find(evaluators: Sequence[Evaluator], names: Sequence[str]) -> list[Evaluator]:
    """The evaluators with these names, in that order. Raises UserError for an unknown name."""
    known = {evaluator.name: evaluator for evaluator in evaluators}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(
            f"--evaluators={','.join(names)}: no evaluator {missing[0]!r}; expected one of {', '.join(known)}"
        )
    return [known[name] for name in names]


def default_evaluators(data: DataConfig) -> list[Evaluator]:
    """A loss evaluator, and for a labelled task an evaluator of its predictions or generated texts."""
    kinds: dict[str | None, type[Evaluator]] = {"logits": PredictionEvaluator, "text": GenerationEvaluator}
    kind = kinds.get(data.task.output)
    return [LossEvaluator(name="loss"), *([] if kind is None else [kind(name="predictions")])]
