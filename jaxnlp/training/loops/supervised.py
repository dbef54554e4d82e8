"""Supervised training: gradient steps over a feed, with hooks between them.

Metrics are read one call late: step n is already dispatched when the metrics of step n - 1 are read, so the device
never waits for the host.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxnlp import config as configs
from jaxnlp.data.record_store import RecordStore
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.evals.loss import LossEvaluator
from jaxnlp.objectives.objective import names_missing_array
from jaxnlp.peft.files import fingerprint
from jaxnlp.training.experiment import Experiment, check_with_hooks
from jaxnlp.training.feeds import Batch, BatchFeed, Feed
from jaxnlp.training.hooks import Checkpoint, Evaluate, Hook, Log, Profile, check_hook
from jaxnlp.training.init.frozen_base import BASE
from jaxnlp.training.loops.evaluations import BestCheckpoint, Evaluation, Evaluations
from jaxnlp.training.loops.hook_list import HookList
from jaxnlp.training.loops.nonfinite import nonfinite_error
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

    experiment, program, tokenizer, stores: what was trained, with the opened splits by name.
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
    evaluations: dict[str, Evaluation]
    best: BestCheckpoint | None


def train(
    experiment: Experiment | None,
    workdir: str | pathlib.Path,
    profile: tuple[int, int] | None = None,
    *,
    hooks: Sequence[Hook] = (),
    make_feed: Callable[[Setup], Feed] | None = None,
    late_errors: list[Exception] | None = None,
) -> Result:
    """Runs an experiment in a folder, or resumes the run in that folder.

    Args:
        experiment: what to run; None takes the one in the folder's newest checkpoint.
        workdir: checkpoints, logs and figures are written here.
        profile: first and last step of a JAX trace written to `workdir/profile`.
        hooks: more hooks, besides those of the experiment. `best` may name the evaluator of one.
        make_feed: returns the source of the batches; None reads the train split.
        late_errors: a list for the errors of hooks after the last step, as of an evaluation. The caller raises them
            when it has reported the result. None: they are raised here.

    Raises:
        UserError: a config that cannot run or resume, a folder in use, a full disk, a loss that
            is not finite.
    """
    stride = 1
    if experiment is not None:
        configs.check_types(experiment)
        stride = max(1, experiment.steps_per_call)
    for i, hook in enumerate(hooks):
        if not isinstance(hook, Hook):
            raise FieldError(f"hooks[{i}]", hook, "expected a hook of jaxnlp.training.hooks, as Samples(every=100)")
        check_hook(hook, f"hooks[{i}].", stride)
    if experiment is not None:
        check_with_hooks(experiment, hooks)
    with RunFolder(workdir) as run:
        setup = set_up(experiment, run, hooks)
        feed = (
            BatchFeed(setup.program, setup.stores["train"], setup.tokenizer) if make_feed is None else make_feed(setup)
        )
        extra = () if profile is None else (Profile(first=profile[0], last=profile[1]),)
        loop = SupervisedLoop(setup, run, feed, (*extra, *default_hooks(setup.experiment, hooks)), late_errors)
        loop.train()
        return _result(loop)


def default_hooks(experiment: Experiment, hooks: Sequence[Hook] = ()) -> list[Hook]:
    """The hooks of a run in order. Evaluations come before the checkpoint, which is saved with their score."""
    e = experiment
    before_checkpoint: list[Hook] = [Log()]
    if e.eval_every is not None:
        validation = LossEvaluator(name="validation", limit=e.eval_batches)
        before_checkpoint.append(Evaluate(evaluator=validation, every=e.eval_every))
    for evaluator in e.evaluators:
        interval = e.eval_every or 0 if evaluator.every is None else evaluator.every
        before_checkpoint.append(Evaluate(evaluator=evaluator, every=interval))
    before_checkpoint += e.hooks
    at_checkpoint: list[Hook] = [] if e.early_stopping is None else [e.early_stopping]
    at_checkpoint.append(Checkpoint(every=e.checkpoint_every))
    # keep_best compares losses on the same batches, so the evaluation on the full split comes after the checkpoint.
    if e.eval_every is not None and e.eval_batches is not None:
        at_checkpoint.append(Evaluate(evaluator=LossEvaluator(name="full_validation")))
    return [*before_checkpoint, *hooks, *at_checkpoint]


class SupervisedLoop:
    """Gradient steps, and the hooks that are due after each of them.

    Attributes:
        stride: steps in one call. state: the state after the newest call. evaluations: the newest of each name.
    """

    def __init__(
        self,
        setup: Setup,
        run: RunFolder,
        feed: Feed,
        hooks: Sequence[Hook],
        late_errors: list[Exception] | None = None,
    ):
        e = setup.experiment
        self.setup, self.run, self.feed, self.state, self.stride = setup, run, feed, setup.state, e.steps_per_call
        self.evaluations = Evaluations(Best.parse(e.best), run)
        self.late_errors = late_errors
        self._pending: tuple[int, Batch, dict[str, jax.Array], float | None] | None = None  # metrics not read yet
        self._base = {} if setup.program.tuning is None else {BASE: fingerprint(setup.state.frozen)}
        data = run.record("data")
        if data is not None:
            feed.restore(data, run.step)
        self.hooks = HookList(hooks, {} if data is None else data.get("hooks", {}))
        limits = (e.keep_last, e.keep_best, self.evaluations.best)
        run.start(e.num_steps, e.log_every, *limits, meter=ThroughputMeter.of_program(setup.program))
        if run.is_first:
            configs.save_json(e, run.path / "config.json")

    def train(self) -> None:
        """Runs the steps until the end or a signal, and then the hooks that are due at the end."""
        self.hooks.begin(self)
        for _ in self.run.steps(self.stride):
            self.train_step()
        self.read_metrics()
        self.hooks.end(self)
        with self.after_training():
            self.run.wait()  # a checkpoint that was begun before the end

    @contextlib.contextmanager
    def after_training(self) -> Iterator[None]:
        """Context of what follows the last step: an error is collected in `late_errors`, if that is a list.

        A run that a signal stops, or that has several processes, raises it: the other processes would wait.
        """
        try:
            yield
        except Exception as e:
            if self.late_errors is None or self.run.signal is not None or jax.process_count() > 1:
                raise
            self.late_errors.append(e)

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
            self.hooks.act(self)

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
            raise nonfinite_error(self.run, step, batch, values)
        self.hooks.on_metrics(self, step, values, ended)

    def save(self, scored: bool = True) -> None:
        """Begins to save a checkpoint of the current step. scored: with the value of `best`, if it was measured."""
        hooks = self.hooks.states()
        records = {
            "data": {**self.feed.state(), **self._base, **({"hooks": hooks} if hooks else {})},
            "config": configs.to_dict(self.setup.experiment),
            "tokenizer": self.setup.tokenizer.to_json(),
        }
        self.run.save(saved_trees(self.state), records, self.evaluations.score() if scored else None)


def _result(loop: SupervisedLoop) -> Result:
    s, run, evaluations = loop.setup, loop.run, loop.evaluations
    on_full_split = "validation" if s.experiment.eval_batches is None else "full_validation"
    return Result(
        s.experiment,
        s.program,
        s.tokenizer,
        s.stores,
        state=loop.state,
        signal=run.signal,
        validation=evaluations.at_current_step(on_full_split) if run.signal is None else None,
        peak=run.meter.peak,
        evaluations=dict(evaluations),
        best=evaluations.best_checkpoint(),
    )
