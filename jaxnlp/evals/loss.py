"""Loss, perplexity and the objective's own metrics over a split, and the evaluator of them."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxnlp.data.pipeline import eval_batches
from jaxnlp.errors import UserError
from jaxnlp.evals.evaluator import EvaluatedModel, Evaluator, Outcome
from jaxnlp.objectives.objective import Objective, means, names_missing_array

REMEDY = "set eval_every=None, which never evaluates the loss, or choose a data.task whose batches have this array"


NO_TARGETS = "raise the evaluator's limit (eval_batches for validation), or use more data"


def make_eval_step(apply: Callable, objective: Objective) -> Callable:
    """(params, batch) -> sums of {"loss", "weight", the objective's metrics}, without dropout. To be jitted."""

    def eval_step(params: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        loss, weight, extra = objective.loss(apply, params, objective.prepare(batch), None)
        return {"loss": loss, "weight": weight, **extra}

    return eval_step


def evaluate(
    eval_step: Callable,
    params: Any,
    batches: Iterable[dict[str, Any]],
    objective: Objective,
    bytes_per_token: float | None = None,
    progress: Callable[[int], Any] = lambda num_batches: None,
    name: str = "evaluate",
) -> dict[str, float]:
    """Weighted means over all batches. Padding has weight 0, and sums are divided once at the end.

    Args:
        eval_step: from `make_eval_step`, jitted. batches: device batches.
        objective: the objective of `eval_step`; it finalizes the metrics.
        bytes_per_token: bytes of the split's text per target of the split; None if the targets are not the text. Bits
            per byte are exact if the batches cover the split.
        progress: called with the number of batches done. name: of the evaluation, for messages.

    Returns:
        `loss` without regularisers, `perplexity` if the loss is in nats per token, `bits_per_byte` unless
        `bytes_per_token` is None, `tokens` (the sum of weights), and the objective's other metrics.

    Raises:
        UserError: the sum of weights is 0, or the objective reads an array that the batches lack.
    """
    sums: Any = None
    for num_batches, batch in enumerate(batches, 1):
        with names_missing_array(objective, batch, "a batch of the split", REMEDY):
            new = jax.tree.map(lambda x: np.asarray(x, np.float64), eval_step(params, batch))
        sums = new if sums is None else jax.tree.map(lambda a, b: a + b, sums, new)
        progress(num_batches)
    if not sums or not sums["weight"]:
        raise UserError(f"{name}: the sum of the targets' weights is 0; expected a target; {NO_TARGETS}")
    weight = sums.pop("weight")
    metrics = means(sums, weight)
    if objective.loss_unit == "nats" and objective.predicts_tokens:
        metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))
    if bytes_per_token is not None:
        metrics["bits_per_byte"] = metrics["loss"] / math.log(2) / bytes_per_token
    metrics = objective.finalize_metrics({**metrics, "tokens": weight})
    return {name: float(x) for name, x in metrics.items()}


@dataclasses.dataclass(kw_only=True)
class LossEvaluator(Evaluator):
    """The loss and the objective's metrics over a split."""

    def evaluate(self, model: EvaluatedModel) -> Outcome:
        data, store = self.open(model)
        program = model.program
        objective = program.experiment.objective
        per_token = store.bytes_per_token if objective.reports_bits_per_byte else None
        batches = eval_batches(store, data, self.limit, program.local_row_indices, model.tokenizer)
        name = f"evaluator {self.name!r}, {self.split} split"
        placed = _placed(model, batches)
        return Outcome(evaluate(program.eval_step, model.params, placed, objective, per_token, name=name))


def _placed(model: EvaluatedModel, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        model.between_batches()
        yield model.program.shard_batch(batch)
