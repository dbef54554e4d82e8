"""Evaluates a trained model with evaluators, as `jaxnlp.Model.evaluate` does."""

import dataclasses
from collections.abc import Sequence

from jaxnlp import config as configs
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.defaults import choose
from jaxnlp.evals.evaluator import EvaluatedModel, Evaluator
from jaxnlp.metrics.metric import Scores


def evaluate_model(
    model: EvaluatedModel,
    split: str | None,
    limit: int | None,
    evaluators: Sequence[str | Evaluator] | None,
    has_data: bool,
) -> Scores:
    """The metrics of each evaluator as "NAME/METRIC"; those of the evaluator "loss" have no prefix.

    Args:
        split, limit: replace those of each evaluator; None keeps them. has_data: whether the model is that of a run.
        evaluators: names or objects; None: the loss and the run's evaluators.

    Raises:
        UserError: an unknown name or split, or an evaluator that reads the run's data, which the model does not have.
    """
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise FieldError("limit", limit, "expected a positive number of batches or records, or None")
    if isinstance(evaluators, (str, Evaluator)):
        raise FieldError("evaluators", evaluators, f"expected a list, as [{evaluators!r}]")
    e = model.program.experiment
    if evaluators is None:
        evaluators = choose(e, predictions=False)
    if not evaluators:
        raise FieldError("evaluators", evaluators, "expected names or objects, or None for those of the run")
    metrics: Scores = {}
    names: list[str] = []
    for i, item in enumerate(evaluators):
        evaluator = choose(e, [item])[0] if isinstance(item, str) else item
        if not isinstance(evaluator, Evaluator):
            raise FieldError(f"evaluators[{i}]", item, "expected a name, or an Evaluator as LossEvaluator(name='loss')")
        if evaluator.name in names:
            raise FieldError(f"evaluators[{i}].name", evaluator.name, "expected different names")
        names.append(evaluator.name)
        if split is not None:
            evaluator = dataclasses.replace(evaluator, split=split)
        if limit is not None:
            evaluator = dataclasses.replace(evaluator, limit=limit)
        configs.check(evaluator, f"evaluators[{i}].")
        if evaluator.source is None and evaluator.reads_data and not has_data:
            reason = "it has no data; set the evaluator's source, or import the model as a run with experiments.import"
            raise UserError(f"evaluate: evaluator {evaluator.name!r}: the model is not a run: {reason}")
        prefix = "" if evaluator.name == "loss" else f"{evaluator.name}/"
        metrics |= {f"{prefix}{name}": value for name, value in evaluator.run(model).items()}
    return metrics
