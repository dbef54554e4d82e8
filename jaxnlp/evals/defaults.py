"""The evaluators of a run whose config has none, and the choice of evaluators for a trained run."""

from collections.abc import Sequence

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.evals.evaluator import Evaluator, find
from jaxnlp.evals.generations import GenerationEvaluator
from jaxnlp.evals.loss import LossEvaluator
from jaxnlp.evals.predictions import PredictionEvaluator

RESERVED = ("loss", "predictions")  # names of the default evaluators


def default_evaluators(data: DataConfig) -> list[Evaluator]:
    """A loss evaluator, and for a labelled task an evaluator of its predictions or generated texts."""
    kinds: dict[str | None, type[Evaluator]] = {"logits": PredictionEvaluator, "text": GenerationEvaluator}
    kind = kinds.get(data.task.output)
    return [LossEvaluator(name="loss"), *([] if kind is None else [kind(name="predictions")])]


def choose(data: DataConfig, evaluators: Sequence[Evaluator], names: Sequence[str] = ()) -> list[Evaluator]:
    """The evaluators with these names; without names the loss and the run's evaluators, or else the defaults.

    Args:
        evaluators: those of the run.

    Raises:
        UserError: an unknown name.
    """
    defaults = default_evaluators(data)
    if names:
        return find([*defaults, *evaluators], names)
    return [defaults[0], *evaluators] if evaluators else defaults
