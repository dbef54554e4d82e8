"""The evaluators of a run whose config has none, and the choice of evaluators for a trained run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import UserError
from jaxnlp.evals.evaluator import Evaluator, find
from jaxnlp.evals.generations import GenerationEvaluator
from jaxnlp.evals.loss import LossEvaluator
from jaxnlp.evals.predictions import PredictionEvaluator

if TYPE_CHECKING:
    from jaxnlp.training.experiment import Experiment

RESERVED = ("loss", "predictions")  # names of the default evaluators


def default_evaluators(data: DataConfig) -> list[Evaluator]:
    """A loss evaluator, and for a labelled task an evaluator of its predictions or generated texts."""
    kinds: dict[str | None, type[Evaluator]] = {"logits": PredictionEvaluator, "text": GenerationEvaluator}
    kind = kinds.get(data.task.output)
    return [LossEvaluator(name="loss"), *([] if kind is None else [kind(name="predictions")])]


def choose(
    experiment: "Experiment", names: Sequence[str] = (), predictions: bool = True, field: str = "evaluators"
) -> list[Evaluator]:
    """The evaluators of a run with these names; without names the loss and the run's evaluators, or else the defaults.

    A run with `eval_every=None` never evaluates the loss, so that it is left out unless it is named.

    Args:
        predictions: whether the predictions of a labelled task are among the defaults. field: what names are from.

    Raises:
        UserError: an unknown name, or nothing to evaluate.
    """
    loss, *others = default_evaluators(experiment.data)
    if names:
        return find([loss, *others, *experiment.evaluators], names, field)
    chosen = [] if experiment.eval_every is None else [loss]
    chosen += experiment.evaluators or (others if predictions else [])
    if not chosen:
        raise UserError("eval_every=None, and the run has no evaluators: there is nothing to evaluate; name some")
    return chosen
