"""An evaluator that fails after the last step."""

import dataclasses
from typing import NoReturn

from jaxnlp.evals.evaluator import EvaluatedModel, Evaluator


@dataclasses.dataclass(kw_only=True)
class Fails(Evaluator):
    name: str = "fails"

    def evaluate(self, model: EvaluatedModel) -> NoReturn:
        raise ValueError("broken evaluator")
