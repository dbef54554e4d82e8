"""Supervised training: gradient steps over a feed, with hooks between them.

Metrics are read one call late: step n is already dispatched when the metrics of step n - 1 are read, so the device
never waits for the host.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxnlp import config as configs
from jaxnlp.data.record_store import RecordStore
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.objectives.objective import names_missing_array
from jaxnlp.peft.files import fingerprint
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.feeds import Batch, BatchFeed, Feed
from jaxnlp.training.hooks import Checkpoint, Evaluate, Hook, Log, Profile, RunEvaluator, StoppedBySignal
from jaxnlp.training.init.frozen_base import BASE
from jaxnlp.training.run_folder.best import Best
from jaxnlp.training.run_folder.run_folder import RunFolder
from jaxnlp.training.run_folder.throughput import ThroughputMeter
from jaxnlp.training.setup import Setup, set_up
from jaxnlp.training.step.program import Program
from jaxnlp.training.step.state import TrainState, saved_trees

ADD_ARRAY = "add it to the arrays of Feed.next, or use another objective"


@dataclasses.dataclass(frozen=True)
class Result:
    """A run that has ended, or that a signal has stopped.

    state: the final state. signal: the signal that stopped the run, or None.
    validation: metrics over the full validation split; None if a signal stopped the run, or with `eval_every=None`.
    peak: a description of the FLOP/s that the utilisation is relative to.
    evaluations: the newest metrics of each evaluation, by its name.
    best: the checkpoint that `--checkpoint=best` loads, or None if no checkpoint has a score.
    """

    experiment: Experiment
    program: Program
    tokenizer: Tokenizer
    stores: dict[str, TokenStore | RecordStore]
    state: TrainState
    signal: int | None
    validation: dict[str, float] | None
    peak: str
    evaluations: "dict[str, Evaluation]"
    best: "BestCheckpoint | None"


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


def train(
    experiment: Experiment | None,
    workdir: str | pathlib.Path,
    profile: tuple[int, int] | None = None,
    *,
    hooks: Sequence[Hook] = (),
    make_feed: Callable[[Setup], Feed] | None = None,
) -> Result:
    """Runs an experiment in a folder, or resumes the run in that folder.

    Args:
        experiment: what to run; None takes the one in the folder's newest checkpoint.
        workdir: checkpoints, logs and figures are written here.
        profile: first and last step of a JAX trace written to `workdir/profile`.
        hooks: more hooks, besides those of the experiment.
        make_feed: returns the source of the batches; None reads the train split.

    Raises:
        UserError: a config that cannot run or resume, a folder in use, a full disk, a loss that
            is not finite.
    """
    if experiment is not None:
        configs.check(experiment)
    for i, hook in enumerate(hooks):
        if not isinstance(hook, Hook):
            raise FieldError(f"hooks[{i}]", hook, "expected a hook of jaxnlp.training.hooks, as Evaluate(every=10)")
        configs.check(hook, f"hooks[{i}].")
    with RunFolder(workdir) as run:
        setup = set_up(experiment, run)
        feed = (
            BatchFeed(setup.program, setup.stores["train"], setup.tokenizer) if make_feed is None else make_feed(setup)
        )
        extra = () if profile is None else (Profile(first=profile[0], last=profile[1]),)
        loop = SupervisedLoop(setup, run, feed, (*extra, *default_hooks(setup.experiment, hooks)))
        loop.train()
        return loop.result()


def default_hooks(experiment: Experiment, hooks: Sequence[Hook] = ()) -> list[Hook]:
    """The hooks of a run in order. Evaluations come before the checkpoint, which is saved with their score."""
    e = experiment
    before_checkpoint: list[Hook] = [Log()]
    if e.eval_every is not None:
        before_checkpoint.append(Evaluate(every=e.eval_every, limit=e.eval_batches))
    for evaluator in e.evaluators:
        interval = e.eval_every or 0 if evaluator.every is None else evaluator.every
        before_checkpoint.append(RunEvaluator(evaluator=evaluator, every=interval))
    before_checkpoint += e.hooks
    at_checkpoint: list[Hook] = [] if e.early_stopping is None else [e.early_stopping]
    at_checkpoint.append(Checkpoint(every=e.checkpoint_every))
    # keep_best compares losses on the same batches, so the evaluation on the full split comes after the checkpoint.
    if e.eval_every is not None and e.eval_batches is not None:
        at_checkpoint.append(Evaluate(name="full_validation"))
    return [*before_checkpoint, *hooks, *at_checkpoint]


class SupervisedLoop:
    """Gradient steps, and the hooks that are due after each of them.

    Attributes:
        stride: steps in one call. state: the state after the newest call. best: the metric that ranks checkpoints.
        evaluations: the newest metrics of each evaluation, by its name.
    """

    def __init__(self, setup: Setup, run: RunFolder, feed: Feed, hooks: Sequence[Hook]):
        e = setup.experiment
        self.setup, self.run, self.feed, self.hooks = setup, run, feed, [copy.copy(hook) for hook in hooks]
        self.state, self.stride, self.best = setup.state, e.steps_per_call, Best.parse(e.best)
        self.evaluations: dict[str, Evaluation] = {}
        self._pending: tuple[int, Batch, dict[str, jax.Array], float | None] | None = None  # metrics not read yet
        self._acted: dict[int, int] = {}  # by hook, the step at which it acted last
        self._base = {} if setup.program.tuning is None else {BASE: fingerprint(setup.state.frozen)}
        data = run.record("data")
        if data is not None:
            feed.restore(data, run.step)
            hook_states = data.get("hooks", {})
            for name, hook in self._named_hooks().items():
                if name in hook_states:
                    hook.restore(hook_states[name])
        meter = ThroughputMeter.of_program(setup.program)
        limits = (e.keep_last, e.keep_best, self.best)
        run.start(e.num_steps, e.log_every, *limits, meter=meter)
        if run.is_first:
            configs.save_json(e, run.path / "config.json")

    def train(self) -> None:
        """Runs the steps until the end or a signal, and then the hooks that are due at the end."""
        for hook in self.hooks:
            hook.begin(self)
        for _ in self.run.steps(self.stride):
            self.train_step()
        self.read_metrics()
        for hook in self.hooks:
            stopped = self.run.signal is not None
            if hook.at_stop if stopped else (hook.at_end or self.run.due(hook.every)):
                self._act(hook, hook.end)

    def train_step(self) -> None:
        """One call of the step, and the hooks that are due after it."""
        batch = self.feed.next(self.state)
        feed, step_num = type(self.feed).__name__, self.run.step - self.stride + 1
        needs = names_missing_array(self.setup.experiment.objective, batch.arrays, f"a batch of {feed}", ADD_ARRAY)
        with needs, jax.profiler.StepTraceAnnotation("train", step_num=step_num):
            self.state, metrics = self.setup.program.step(self.state, batch.arrays)
        # With synchronous dispatch (CPU) the step has ended here; otherwise it has when its metrics can be read.
        loss: Any = metrics["loss"]
        ended = self.run.meter.now() if loss.is_ready() else None
        self.read_metrics()
        self._pending = (self.run.step, batch, metrics, ended)
        if self.run.step < self.run.num_steps:
            due = [hook for hook in self.hooks if self.run.due(hook.every)]
            if any(hook.reads_metrics for hook in due):
                self.read_metrics()  # a state is saved only once its loss is known to be finite
            for hook in due:
                self._act(hook, hook.act)

    def read_metrics(self) -> None:
        """Reads the metrics of the newest call, if that has not been done, and passes them to the hooks.

        Raises:
            UserError: a loss or gradient that is not finite, with `on_nonfinite` "stop".
        """
        if self._pending is None:
            return
        (step, batch, metrics, ended), self._pending = self._pending, None
        values = {name: np.atleast_1d(np.asarray(x)) for name, x in metrics.items()}
        if self.setup.experiment.on_nonfinite == "stop" and not values["finite"].all():
            self._stop_nonfinite(step, batch, values)
        for hook in self.hooks:
            hook.on_metrics(self, step, values, ended)

    def add_evaluation(self, name: str, metrics: dict[str, float]) -> None:
        """Logs an evaluation of the current step; `Experiment.best` may name one of its metrics."""
        self.evaluations[name] = Evaluation(self.run.step, metrics)
        self.run.write(name, metrics)

    def score(self) -> float | None:
        """The value of `best`, if it was measured at the current step."""
        evaluation = self.evaluations.get(self.best.evaluator)
        if evaluation is None or evaluation.step != self.run.step:
            return None
        if self.best.metric not in evaluation.metrics:
            names = ", ".join(evaluation.metrics)
            raise UserError(
                f"best={str(self.best)!r}: {self.best.evaluator} measures no such metric; expected one of {names}"
            )
        return evaluation.metrics[self.best.metric]

    def save(self, scored: bool = True) -> None:
        """Begins to save a checkpoint of the current step. scored: with the value of `best`, if it was measured."""
        hooks = {name: hook.state() for name, hook in self._named_hooks().items() if hook.state()}
        records = {
            "data": {**self.feed.state(), **self._base, **({"hooks": hooks} if hooks else {})},
            "config": configs.to_dict(self.setup.experiment),
            "tokenizer": self.setup.tokenizer.to_json(),
        }
        self.run.save(saved_trees(self.state), records, self.score() if scored else None)

    def result(self) -> Result:
        """The result of the run."""
        s, step = self.setup, self.run.step
        evaluation = self.evaluations.get("validation" if s.experiment.eval_batches is None else "full_validation")
        validation = (
            evaluation.metrics
            if evaluation is not None and evaluation.step == step and self.run.signal is None
            else None
        )
        signal, peak = self.run.signal, self.run.meter.peak
        outputs = (self.state, signal, validation, peak, dict(self.evaluations), self._best_checkpoint())
        return Result(s.experiment, s.program, s.tokenizer, s.stores, *outputs)

    def _best_checkpoint(self) -> BestCheckpoint | None:
        best_step = self.run.reader.best()
        score = None if best_step is None else self.run.reader.score(best_step)
        if best_step is None or score is None:
            return None
        return BestCheckpoint(f"{self.best.evaluator}/{self.best.metric}", best_step, score)

    def _act(self, hook: Hook, action: Callable[["SupervisedLoop"], None]) -> None:
        if self._acted.get(id(hook)) == self.run.step:
            return
        self._acted[id(hook)] = self.run.step
        try:
            action(self)
        except StoppedBySignal:
            self.run.interrupt()
        except Exception:
            self._save_before_error(hook)
            raise

    def _save_before_error(self, hook: Hook) -> None:
        """Saves the step at which a hook has failed, so that its training is not lost. Several processes do not:
        all must save together, and the error may be of one alone."""
        if hook.reads_metrics and not isinstance(hook, Checkpoint) and jax.process_count() == 1:
            self.save(scored=False)
            self.run.wait()

    def _named_hooks(self) -> dict[str, Hook]:
        """The hooks by the name under which their state is saved: the class, with a number from the second on."""
        hooks_by_name: dict[str, Hook] = {}
        for hook in self.hooks:
            name, count = type(hook).__name__, sum(type(earlier) is type(hook) for earlier in hooks_by_name.values())
            hooks_by_name[f"{name} {count + 1}" if count else name] = hook
        return hooks_by_name

    def _stop_nonfinite(self, step: int, batch: Batch, values: dict[str, np.ndarray]) -> None:
        index = int(np.argmin(values["finite"]))
        first_bad = step - len(values["finite"]) + index + 1
        self.run.wait()
        last_good, name = self.run.last_saved(), batch.describe(index)
        checkpoint = (
            f"the last good checkpoint is step {last_good}" if last_good is not None else "there is no checkpoint yet"
        )
        raise UserError(
            f"step {first_bad}: the loss is {values['loss'][index]:.4g} and the gradient norm "
            f"{values['grad_norm'][index]:.4g}, not finite; {checkpoint}; {f'batch: {name}; ' if name else ''}"
            "lower optim.learning_rate, or skip such steps with --config.on_nonfinite=skip"
        )
