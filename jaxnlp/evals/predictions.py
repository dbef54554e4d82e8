"""Batch prediction with a fine-tuned model, and the evaluator of the predictions."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxnlp.data.source import Record
from jaxnlp.data.tasks.encoding import Example
from jaxnlp.data.tasks.labelled_task import LabelledTask, Prediction
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.evals.evaluator import EvaluatedModel, Outcome, RecordEvaluator
from jaxnlp.inference.loop import replicate

INPUTS = ("token_type_ids", "segment_ids", "pool_positions")


def make_predict_step(apply: Callable) -> Callable:
    """(params, batch) -> a head's logits, replicated. To be jitted, and called in the program's context."""

    def predict_step(params: Any, batch: Any) -> jax.Array:
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        return replicate(apply(params, batch["tokens"], **inputs)["logits"])

    return predict_step


def predict(
    program: Any, params: Any, tokenizer: Tokenizer, records: Sequence[Record], examples: Sequence[Example]
) -> Iterator[Prediction]:
    """Yields the task's prediction for each record, in order, computed one batch at a time.

    With several processes, all must call it with the same records and exhaust the iterator.

    Args:
        program: the `Program` of the fine-tuned run. examples: the task's examples of the records, in record order.
    """
    data = program.experiment.data
    task, size = data.task, data.batch_size

    pending: list[tuple[Example, np.ndarray]] = []  # examples of one record, such as its context windows
    for start in range(0, len(examples), size):
        rows: list[Any] = [*examples[start : start + size]]
        batch = task.collate(rows + [None] * (size - len(rows)), data.seq_len, tokenizer.eos_id)
        local = {name: x[program.local_row_indices] for name, x in batch.items()}
        with program.context(any_length=True):
            outputs = np.asarray(program.predict_step(params, program.shard_batch(local)))
        for example, row in zip(rows, outputs, strict=False):
            if pending and pending[0][0].record != example.record:
                yield _prediction(task, records, pending)
                pending = []
            pending.append((example, row))
    if pending:
        yield _prediction(task, records, pending)


def _prediction(task: LabelledTask, records: Sequence[Record], rows: list[tuple[Example, np.ndarray]]) -> Prediction:
    examples, logits = zip(*rows, strict=True)
    return task.decode(records[examples[0].record], examples, np.stack(logits))


@dataclasses.dataclass(kw_only=True)
class PredictionEvaluator(RecordEvaluator):
    """The task's metrics of a head's predictions, e.g. exact match and F1 of answers, or F1 of entities."""

    def evaluate(self, model: EvaluatedModel) -> Outcome:
        task, store, records = self.records(model)
        if task.output != "logits":
            raise FieldError("data.task", type(task).__name__, f"{self.name!r} needs a head; use GenerationEvaluator")
        examples = store.encoded(task, model.tokenizer, model.data.seq_len)
        evaluated = [example for example in examples if example.record < len(records)]
        predictions = []
        for prediction in predict(model.program, model.params, model.tokenizer, records, evaluated):
            model.between_batches()
            predictions.append(prediction)
        return self.outcome(task, records, predictions)
