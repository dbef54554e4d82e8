"""Which checkpoint of a run is the best one."""

import dataclasses
import math

from jaxnlp.errors import FieldError
from jaxnlp.renamed import EVALUATORS


@dataclasses.dataclass(frozen=True)
class Best:
    """A metric and its direction, written "EVALUATOR/METRIC:min" or ":max", as "validation/loss:min"."""

    evaluator: str
    metric: str
    mode: str

    @classmethod
    def parse(cls, text: str) -> "Best":
        """Raises FieldError for a text of another form."""
        name, _, mode = text.rpartition(":")
        evaluator, _, metric = name.rpartition("/")
        evaluator = EVALUATORS.get(evaluator, evaluator)
        if not evaluator or not metric or mode not in ("min", "max"):
            expected = (
                "expected EVALUATOR/METRIC:min or EVALUATOR/METRIC:max, as 'validation/loss:min' or 'squad/f1:max'"
            )
            raise FieldError("best", text, expected)
        return cls(evaluator, metric, mode)

    def __str__(self) -> str:
        return f"{self.evaluator}/{self.metric}:{self.mode}"

    def cost(self, score: float) -> float:
        """The score as a cost: lower is better. NaN, which compares with no number, costs infinity."""
        if math.isnan(score):
            return math.inf
        return score if self.mode == "min" else -score


VALIDATION_LOSS = Best("validation", "loss", "min")
