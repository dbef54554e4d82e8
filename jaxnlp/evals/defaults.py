"""The evaluators of a run whose config has none."""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.evals.evaluator import Evaluator
from jaxnlp.evals.generations import GenerationEvaluator
from jaxnlp.evals.loss import LossEvaluator
from jaxnlp.evals.predictions import PredictionEvaluator


def default_evaluators(data: DataConfig) -> list[Evaluator]:
    """A loss evaluator, and for a labelled task an evaluator of its predictions or generated texts."""
    kinds: dict[str | None, type[Evaluator]] = {"logits": PredictionEvaluator, "text": GenerationEvaluator}
    kind = kinds.get(data.task.output)
    return [LossEvaluator(name="loss"), *([] if kind is None else [kind(name="predictions")])]
