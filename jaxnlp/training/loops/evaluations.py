"""The newest evaluations of a run, and the metric that ranks its checkpoints."""

import dataclasses

from jaxnlp.errors import UserError
from jaxnlp.training.run_folder.best import Best
from jaxnlp.training.run_folder.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The newest metrics of an evaluation, and the step at which they were measured."""

    step: int
    metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class BestCheckpoint:
    """The step of the best checkpoint, and its score: the value of `metric`, as "squad/f1"."""

    metric: str
    step: int
    score: float


class Evaluations(dict[str, Evaluation]):
    """The newest evaluation of each name.

    Attributes:
        best: the metric that ranks checkpoints, of `Experiment.best`.
    """

    def __init__(self, best: Best, run: RunFolder):
        super().__init__()
        self.best, self._run = best, run

    def add(self, name: str, metrics: dict[str, float]) -> None:
        """Logs an evaluation of the current step; `Experiment.best` may name one of its metrics.

        Raises:
            UserError: `best` names this evaluation and a metric that it does not measure.
        """
        self[name] = Evaluation(self._run.step, metrics)
        self._run.write(name, metrics)
        if name == self.best.evaluator and self.best.metric not in metrics:
            raise UserError(
                f"best={str(self.best)!r}: {name} measures no such metric; expected one of {', '.join(metrics)}"
            )

    def at_current_step(self, name: str) -> dict[str, float] | None:
        """The metrics of an evaluation, if it was run at the current step."""
        evaluation = self.get(name)
        return None if evaluation is None or evaluation.step != self._run.step else evaluation.metrics

    def score(self) -> float | None:
        """The value of `best`, if it was measured at the current step."""
        metrics = self.at_current_step(self.best.evaluator)
        return None if metrics is None else metrics.get(self.best.metric)

    def best_checkpoint(self) -> BestCheckpoint | None:
        """The checkpoint that `--checkpoint=best` loads, or None if no checkpoint has a score."""
        step = self._run.reader.best()
        scored = None if step is None else self._run.reader.score(step)
        if step is None or scored is None:
            return None
        best, score = scored
        return BestCheckpoint(f"{best.evaluator}/{best.metric}", step, score)
