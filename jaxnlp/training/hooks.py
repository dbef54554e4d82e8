"""Actions between the steps of a loop: logging, evaluation, checkpoints, profiling, samples, early stopping.

A hook is added with `Experiment.hooks` (then it is a dataclass of config fields, saved with the config) or with
`train(..., hooks=(...))`. Hooks act in order, after the built-in evaluations and before the built-in checkpoint.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxnlp import config as configs
from jaxnlp.errors import FieldError
from jaxnlp.evals.evaluator import EvaluatedModel, Evaluator
from jaxnlp.inference.bound_model import make_generator

if TYPE_CHECKING:
    from jaxnlp.training.loops.supervised import SupervisedLoop


class StoppedBySignal(Exception):
    """Raised by a hook that a signal interrupts, as in the middle of an evaluation."""


@dataclasses.dataclass(kw_only=True)
class Hook:
    """Acts every `every` steps (0: never), and with `at_end` after the last step too.

    Attributes:
        at_stop: whether it also acts after the last step of a run that a signal stops.
        reads_metrics: whether the metrics of the current step are read, and so checked to be finite, before it acts.
            False lets the device run ahead.
    """

    every: int = 0
    at_end: bool = False
    at_stop = False
    reads_metrics = True

    def check(self) -> None:
        """Raises FieldError for a field with an invalid value."""
        if self.every < 0:
            raise FieldError("every", self.every, "expected 0 (never) or a positive number of steps")

    def begin(self, loop: "SupervisedLoop") -> None:
        """Called once, before the first step of this process."""

    def on_metrics(
        self, loop: "SupervisedLoop", step: int, metrics: dict[str, np.ndarray], ended: float | None
    ) -> None:
        """Called once for each call of the step, when its metrics have been read, which is one call later.

        Args:
            step: the last step of the call. metrics: by name, one value for each step of the call.
            ended: when the call ended, on the clock of `loop.run.meter`; None: now.
        """

    def act(self, loop: "SupervisedLoop") -> None:
        """Called when the hook is due. `loop.run.step` is the step, `loop.state` the state after it."""

    def end(self, loop: "SupervisedLoop") -> None:
        """Called instead of `act` after the last step."""
        self.act(loop)

    def state(self) -> dict[str, Any]:
        """JSON values saved with every checkpoint; empty saves nothing."""
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Continues from `state()`. Called before `begin` when a run resumes."""


def check_hook(hook: Hook, field: str, steps_per_call: int) -> None:
    """Raises FieldError, with the name of `field` in front, for a hook that cannot act when it is due."""
    configs.check(hook, field)
    if hook.every > 1 and hook.every % steps_per_call:
        raise FieldError(f"{field}every", hook.every, f"not a multiple of steps_per_call={steps_per_call}")


@dataclasses.dataclass(kw_only=True)
class Log(Hook):
    """Writes the training metrics to `metrics.jsonl` and TensorBoard, and shows them."""

    def on_metrics(
        self, loop: "SupervisedLoop", step: int, metrics: dict[str, np.ndarray], ended: float | None
    ) -> None:
        row = {name: x[-1] for name, x in metrics.items() if name != "finite"}
        note = ""
        if "validation" in loop.evaluations:
            note += f"  validation {loop.evaluations['validation'].metrics['loss']:.4f}"
        if row.get("skipped"):
            note += f"  skipped {row['skipped']:.0f}"
        loop.run.log(row, step, ended, note)


@dataclasses.dataclass(kw_only=True)
class Checkpoint(Hook):
    """Saves the training state, the states of the feed and the hooks, the config and the tokenizer."""

    at_end: bool = True
    at_stop = True

    def act(self, loop: "SupervisedLoop") -> None:
        loop.save()

    def end(self, loop: "SupervisedLoop") -> None:
        loop.save()
        loop.run.wait()


@dataclasses.dataclass(kw_only=True)
class Profile(Hook):
    """Writes a JAX trace of the calls that contain the steps `first` to `last` to `workdir/profile`."""

    first: int
    last: int
    every: int = 1
    at_end: bool = True
    at_stop = True
    reads_metrics = False

    def begin(self, loop: "SupervisedLoop") -> None:
        self._traced_from: int | None = None
        self._done = False
        self._start_if_next(loop)

    def act(self, loop: "SupervisedLoop") -> None:
        if self._traced_from is None:
            self._start_if_next(loop)
        elif loop.run.step >= self.last:
            self._write(loop)

    def end(self, loop: "SupervisedLoop") -> None:
        if self._traced_from is not None:
            self._write(loop)
        elif not self._done:
            loop.run.info(
                f"note: --profile_steps={self.first}:{self.last}: none of these steps ran, so there is no trace"
            )

    def _start_if_next(self, loop: "SupervisedLoop") -> None:
        next_step = loop.run.step + 1
        if not self._done and next_step <= self.last and self.first < next_step + loop.stride:
            jax.profiler.start_trace(str(loop.run.path / "profile"))
            self._traced_from = next_step

    def _write(self, loop: "SupervisedLoop") -> None:
        jax.block_until_ready(loop.state)
        jax.profiler.stop_trace()
        steps, folder = f"{self._traced_from} to {loop.run.step}", loop.run.path / "profile"
        self._traced_from, self._done = None, True
        loop.run.info(f"wrote the trace of steps {steps} to {folder} (open it with TensorBoard or xprof)")


@dataclasses.dataclass(kw_only=True)
class EarlyStopping(Hook):
    """Ends the run when `Experiment.best` has not improved for `patience` evaluations; see `Experiment.early_stopping`.

    min_delta: the smallest change that counts as an improvement.
    """

    patience: int = 3
    min_delta: float = 0.0
    every: int = 1
    reads_metrics = False
    _bad, _lowest, _counted = 0, float("inf"), 0  # evaluations without improvement, lowest cost, last step counted

    def check(self) -> None:
        super().check()
        if self.patience < 1:
            raise FieldError("patience", self.patience, "expected a positive number of evaluations")
        if self.min_delta < 0:
            raise FieldError("min_delta", self.min_delta, "expected zero or more")

    def begin(self, loop: "SupervisedLoop") -> None:
        self._stop_if_exhausted(loop)

    def act(self, loop: "SupervisedLoop") -> None:
        score = loop.evaluations.score()
        if score is None or loop.run.step <= self._counted:  # not evaluated, or evaluated again by a resumed run
            return
        cost, self._counted = loop.evaluations.best.cost(score), loop.run.step
        if cost < self._lowest - self.min_delta:
            self._bad, self._lowest = 0, cost
        else:
            self._bad += 1
        self._stop_if_exhausted(loop)

    def state(self) -> dict[str, Any]:
        if not self._counted:
            return {}
        lowest = self._lowest if self._lowest < float("inf") else None  # None: no score was a number
        return {"bad": self._bad, "lowest": lowest, "counted": self._counted}

    def restore(self, saved: dict[str, Any]) -> None:
        lowest = saved["lowest"]
        self._bad, self._lowest = saved["bad"], float("inf") if lowest is None else lowest
        self._counted = saved.get("counted", 0)

    def _stop_if_exhausted(self, loop: "SupervisedLoop") -> None:
        if self._bad >= self.patience:
            loop.run.stop(f"early stopping: {loop.evaluations.best} has not improved for {self._bad} evaluations")


@dataclasses.dataclass(kw_only=True)
class Evaluate(Hook):
    """Runs an evaluator, whose name names the rows of the log and is used in `Experiment.best`.

    With one process a signal ends the evaluation. Several processes must stop together, so they finish it first.
    """

    evaluator: Evaluator
    at_end: bool = True

    def begin(self, loop: "SupervisedLoop") -> None:
        setup = loop.setup  # one generator for all evaluations, since its programs are compiled for the object
        self._generator = functools.cache(lambda: make_generator(setup.program.bind(setup.tokenizer)))

    def act(self, loop: "SupervisedLoop") -> None:
        def between_batches() -> None:
            if loop.run.interrupted:
                raise StoppedBySignal

        setup, params = loop.setup, loop.state.all_params
        log = loop.run.info
        model = EvaluatedModel(
            setup.program, params, setup.tokenizer, self._generator, setup.stores, between_batches, log
        )
        with loop.run.pause(f"evaluating {self.evaluator.name}"):
            metrics = self.evaluator.run(model)
        loop.evaluations.add(self.evaluator.name, metrics)


@dataclasses.dataclass(kw_only=True)
class Samples(Hook):
    """Prints a sample of the model's text or predictions, as the report of a finished run does."""

    def begin(self, loop: "SupervisedLoop") -> None:
        from jaxnlp.training.sampled_run import SampledRun

        setup = loop.setup  # one object for all samples, since its programs are compiled for it
        self._model = SampledRun(setup.program, None, setup.tokenizer, setup.stores["validation"])

    def act(self, loop: "SupervisedLoop") -> None:
        with loop.run.pause("sampling"):
            lines = self._model.with_params(loop.state.all_params).lines()
        if lines:
            loop.run.info("\n".join(lines))
