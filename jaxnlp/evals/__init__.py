"""Evaluators: a kind in each file."""

from typing import TYPE_CHECKING

from jaxnlp import lazy

if TYPE_CHECKING:
    from jaxnlp.evals.evaluator import EvaluatedModel, Evaluator, Outcome, RecordEvaluator
    from jaxnlp.evals.generations import GenerationEvaluator
    from jaxnlp.evals.loss import LossEvaluator
    from jaxnlp.evals.predictions import PredictionEvaluator
    from jaxnlp.evals.rankings import RankingEvaluator

__all__ = [
    "EvaluatedModel",
    "Evaluator",
    "GenerationEvaluator",
    "LossEvaluator",
    "Outcome",
    "PredictionEvaluator",
    "RankingEvaluator",
    "RecordEvaluator",
]

__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "EvaluatedModel": "evaluator",
        "Evaluator": "evaluator",
        "GenerationEvaluator": "generations",
        "LossEvaluator": "loss",
        "Outcome": "evaluator",
        "PredictionEvaluator": "predictions",
        "RankingEvaluator": "rankings",
        "RecordEvaluator": "evaluator",
    },
)
