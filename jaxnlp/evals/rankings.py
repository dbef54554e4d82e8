"""The evaluator of ranked candidates."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxnlp.data.source import Record
from jaxnlp.data.tasks.labelled_task import LabelledTask, Prediction
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.evaluator import EvaluatedModel, Outcome, RecordEvaluator, row_of
from jaxnlp.evals.predictions import predict
from jaxnlp.inference.scoring import encode_scored, score_continuations
from jaxnlp.metrics.metric import metric_named
from jaxnlp.metrics.ranking import ranking


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
            raise FieldError("normalize", self.normalize, "expected 'none', 'tokens' or 'bytes'")

    def evaluate(self, model: EvaluatedModel) -> Outcome:
        with_head = model.program.experiment.model.head is not None
        records, predictions, scores, right = (self.by_head if with_head else self.by_language_model)(model)
        results = self.score(ranking, scores, right)
        for name in self.metrics:
            results |= self.score(metric_named(name), scores, right)
        rows = zip(records, predictions, right, strict=True)
        return Outcome(results, [row_of(*row) for row in rows])

    def by_head(self, model: EvaluatedModel) -> "Ranked":
        """The records, and the scores of their candidates under a head."""
        task, store, records = self.records(model)
        if self.task is not None:
            raise FieldError("task", type(self.task).__name__, f"{self.name!r}: expected None for a model with a head")
        examples = store.encoded(task, model.tokenizer, model.data.seq_len)
        evaluated = [example for example in examples if example.record < len(records)]
        ranked = Ranked(records, [], [], [])
        for prediction in predict(model.program, model.params, model.tokenizer, records, evaluated):
            model.between_batches()
            scores = prediction.get("probabilities")
            if scores is None:
                expected = f"{self.name!r}: the task does not predict probabilities; expected MultipleChoiceTask()"
                raise FieldError("data.task", type(task).__name__, expected)
            names = list(scores) if isinstance(scores, dict) else []
            ranked.predictions.append(prediction)
            ranked.scores.append(list(scores.values()) if isinstance(scores, dict) else scores)
            ranked.right.append(_index(task.reference(records[len(ranked.right)]), names))
        return ranked

    def by_language_model(self, model: EvaluatedModel) -> "Ranked":
        """The records, and the scores of their candidates under a language model."""
        generator, own = model.generator(), model.data.task if self.task is None else self.task
        task, records = self.records_of(model, own, "MultipleChoiceTask()")
        rows = [task.candidates(record) for record in records]
        if not all(candidates for _, candidates in rows):
            raise FieldError("task", type(task).__name__, f"{self.name!r}: the task defines no candidates to rank")
        pairs = [(prompt, self.separator + text) for prompt, candidates in rows for text in candidates]
        prompts, texts = encode_scored(generator, model.tokenizer, pairs)
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
    if isinstance(right, str) and right not in names:
        raise UserError(f"the reference {right!r} is not one of the candidates, {', '.join(map(repr, names))}")
    return names.index(right) if isinstance(right, str) else int(right)
