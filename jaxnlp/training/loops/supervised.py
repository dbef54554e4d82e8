"""The training loop: steps, and what happens between them.

Metrics are read one step late: step n is already on its way when the numbers of step n - 1 are
read, so the device never waits for the host.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxnlp import config as configs
from jaxnlp.data.pipeline import TrainBatches, corpus_name, eval_batches, open_split, open_tokenizer
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.loss import evaluate
from jaxnlp.peft.files import fingerprint
from jaxnlp.training.experiment import Experiment, resolve
from jaxnlp.training.init.frozen_base import BASE, first_state, with_base
from jaxnlp.training.init.transfer import transferred
from jaxnlp.training.run_folder import resume
from jaxnlp.training.run_folder.checkpoint import Reader, Saved, Writer, set_aside, versions
from jaxnlp.training.run_folder.lock import lock
from jaxnlp.training.run_folder.metric_log import MetricLog
from jaxnlp.training.run_folder.progress import Progress
from jaxnlp.training.run_folder.signals import StopSignals
from jaxnlp.training.run_folder.throughput import ThroughputMeter
from jaxnlp.training.step.program import Program, build
from jaxnlp.training.step.state import TrainState


@dataclasses.dataclass(frozen=True)
class Result:
    """A run that has ended, or stopped for a signal.

    state: at the end. signal: what stopped it, or None. validation: of the whole split, if it ended.
    peak: what the utilisation is a share of, in words.
    """

    experiment: Experiment
    program: Program
    tokenizer: Tokenizer
    stores: dict[str, TokenStore]
    state: TrainState
    signal: int | None
    validation: dict[str, float] | None
    peak: str


def prepare(experiment: Experiment, saved: Saved | None = None) -> tuple[Experiment, Tokenizer]:
    """The checked and resolved experiment, and its tokenizer (a checkpoint's own, if there is one)."""
    configs.check(experiment)
    tokenizer = saved.tokenizer if saved is not None else open_tokenizer(experiment.data)
    return resolve(experiment, tokenizer), tokenizer


def train(experiment: Experiment | None, workdir: str | pathlib.Path, profile: tuple[int, int] | None = None) -> Result:
    """Runs an experiment in a folder, or goes on with the one that is there.

    Args:
        experiment: what to run; None takes the one in the folder's newest checkpoint.
        workdir: checkpoints, logs and pictures go here.
        profile: first and last step of a JAX trace written to `workdir/profile`.

    Raises:
        UserError: a config that cannot run or resume, a folder in use, a full disk, a loss that
            is not finite.
    """
    workdir = pathlib.Path(workdir)
    if experiment is not None:
        configs.check(experiment)
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        if first:
            stack.enter_context(open_workdir(workdir))
        run = TrainingRun(experiment, workdir, profile)
        stack.callback(run.close)
        return run.go()


def open_workdir(workdir: pathlib.Path) -> Any:
    """Makes the folder and takes its lock. Raises UserError where that cannot be done."""
    if "://" in str(workdir) or ":/" in str(workdir):
        raise UserError(
            f"--workdir={workdir}: expected a local path; mount the bucket (as with gcsfuse) and give its folder"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return lock(workdir)
    except OSError as e:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({e.strerror}); choose a folder you can write to"
        ) from None


class TrainingRun:
    """One call of `train`: what it holds while it goes."""

    def __init__(self, experiment: Experiment | None, workdir: pathlib.Path, profile: tuple[int, int] | None):
        self.workdir, self.profile, self.first = workdir, profile, jax.process_index() == 0
        reader = Reader(workdir)
        step = reader.newest(self._damaged)
        saved = None if step is None else reader.read(step)
        if experiment is None:
            if saved is None:
                raise UserError(f"--workdir={workdir}: no checkpoint to go on with; give a config with --config=FILE")
            experiment = saved.experiment
        self.experiment, self.tokenizer = prepare(experiment, saved)
        e = self.experiment
        if saved is not None:
            for path, old, new in resume.changes(saved.experiment, e):
                self.tell(f"note: resuming with {path} changed from {old!r} to {new!r}")
        self.program = build(e)
        self.stores = {split: open_split(e.data, split, self.tokenizer, self.tell) for split in ("train", "validation")}
        position = 0
        if saved is not None:
            self._check_corpus(saved)
            was, now = (found.get("jaxlib") for found in (saved.versions, versions()))
            if was != now:
                self.tell(f"note: the checkpoint was written with jaxlib {was} and this is {now}; bits may differ")
            position = saved.data["position"]
            state = reader.restore(saved.step, self.program.abstract)
            self.state = with_base(self.program, state, self.tokenizer, saved.data, self.tell)
        else:
            self.state = self._begin()
        self.base = {} if self.program.tuning is None else {BASE: fingerprint(self.state.frozen)}
        self.step = int(self.state.step)
        if self.step % e.steps_per_call:
            raise FieldError(
                "steps_per_call",
                e.steps_per_call,
                f"the checkpoint is at step {self.step}, not a multiple of it; set it to 1, or to a divisor of that",
            )
        self.batches = TrainBatches(self.stores["train"], e.data, position, self.program.rows, self.tokenizer)
        self.writer = Writer(workdir, e.keep_last, e.keep_best)
        self.log = MetricLog(workdir, self.step) if self.first else None
        if self.first:
            configs.save_json(e, workdir / "config.json")
        if saved is not None:
            self.tell(f"resuming at step {self.step:,} of {e.steps:,}")
        self.meter = ThroughputMeter(e, self.program, self.step)
        self.pending: Any = None  # the newest call's step, batches, metrics and end, not read yet
        self.validation: tuple[int, float] | None = None  # step and loss of the newest evaluation
        self._traced_from: int | None = None

    def _begin(self) -> TrainState:
        """A new state, with parameters from elsewhere if the experiment says so, and what became of them told."""
        state, report = first_state(self.program, self.tokenizer, self.tell)
        if report is not None:
            self.tell("\n".join(report.lines()))
            if self.first:
                report.save(self.workdir)
        if self.program.tuning is not None:
            self.tell(self.program.tuning.report())
        return transferred(self.program, state, self.tell)

    def tell(self, text: str) -> None:
        if self.first:
            print(text, file=sys.stderr, flush=True)

    def _damaged(self, step: int, error: UserError) -> None:
        self.tell(f"note: the checkpoint of step {step} is damaged ({error})")
        if self.first:
            self.tell(f"note: moved it to {set_aside(self.workdir, step)}; falling back to the one before it")

    def _check_corpus(self, saved: Saved) -> None:
        now = corpus_name(self.stores["train"], self.experiment.data)
        was = saved.data["corpus"].partition(" examples=")[0]  # earlier versions named the examples here too
        if was != now:
            raise UserError(
                f"data.source: the corpus has changed since the checkpoint of step {saved.step} "
                f"(was: {was}; is: {now}), and its place there means nothing now; "
                "restore the corpus, or choose another --workdir"
            )

    def go(self) -> Result:
        """Steps until the end or a signal, then a last evaluation and a last checkpoint."""
        e = self.experiment
        with StopSignals() as self.signals, Progress(e.steps, self.step, self.first) as self.progress:
            stopped = None
            while self.step < e.steps and stopped is None:
                stopped = self.advance()
            self._read_pending()
            validation = None
            if stopped is None:  # keep_best compares losses on the same batches, so these first
                validation = self.evaluate(e.eval_batches)
            self.progress.status("saving")
            self.save()
            self.writer.wait()
            if validation is not None and e.eval_batches is not None:
                validation = self.evaluate(None)
            if stopped is None and validation is None:
                stopped = self.signals.received
        self._profile(end=True)
        return Result(e, self.program, self.tokenizer, self.stores, self.state, stopped, validation, self.meter.peak)

    def advance(self) -> int | None:
        """One call of the step, and whatever is due after it. Returns the signal that ends the run, if any."""
        e = self.experiment
        read = self._next_batches()
        self._profile()
        with jax.profiler.StepTraceAnnotation("train", step_num=self.step + 1):
            self.state, metrics = self.program.step(self.state, read.arrays)
        # Where dispatch is synchronous (CPU) the step has ended here; else when its metrics can be read.
        loss: Any = metrics["loss"]
        ended = self.meter.now() if loss.is_ready() else None
        self.step += e.steps_per_call
        self._read_pending()
        self.pending = (self.step, read, metrics, ended)
        evaluates, saves = self._due(e.eval_every), self._due(e.checkpoint_every)
        if self.step < e.steps and (evaluates or saves):
            self._read_pending()  # a state is saved only once its loss is known to be finite
            if evaluates:
                self.evaluate(e.eval_batches)
            if saves:
                self.save()
        return self._stopped()

    def _read_pending(self) -> None:
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self._read(*pending)

    def close(self) -> None:
        """Ends the background threads, however the run ended."""
        if self.log is not None:
            self.log.close()
        with contextlib.suppress(Exception):  # a failed save has been told already
            self.writer.close()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _stopped(self) -> int | None:
        # Several processes agree on it at log steps only: it costs them a message.
        if jax.process_count() > 1 and not self._due(self.experiment.log_every or 1):
            return None
        return self.signals.agreed(jax.process_count())

    def _next_batches(self) -> "Batches":
        count, begins = self.experiment.steps_per_call, self.batches.position
        batches = [next(self.batches) for _ in range(count)]
        arrays = self.program.put(batches[0]) if count == 1 else self.program.put_stack(batches)
        return Batches(begins, batches, arrays)

    def _read(self, step: int, read: "Batches", metrics: dict[str, jax.Array], ended: float | None) -> None:
        """Reads the metrics of a call that ended at `step`, and logs and checks them."""
        e = self.experiment
        values = {name: np.atleast_1d(np.asarray(x)) for name, x in metrics.items()}
        if e.on_nonfinite == "stop" and not values["finite"].all():
            self._stop_nonfinite(step, read, values)
        self.meter.add(step, ended)
        if step != e.steps and (not e.log_every or step % e.log_every):
            return
        row = {name: float(x[-1]) for name, x in values.items() if name not in ("finite", "nll")}
        row |= self.meter.speed(step)
        if self.log is not None:
            self.log.write(step, "train", row)
        note = f"  validation {self.validation[1]:.4f}" if self.validation else ""
        if row.get("skipped"):
            note += f"  skipped {row['skipped']:.0f}"
        self.progress.update(step, row["loss"], row.get("tokens_per_second"), self.meter.seconds_left(step), note)

    def _stop_nonfinite(self, step: int, read: "Batches", values: dict[str, np.ndarray]) -> None:
        bad = int(np.argmin(values["finite"]))
        at = step - len(values["finite"]) + bad + 1
        self.writer.wait()
        good = max(Reader(self.workdir).steps(), default=None)
        size = self.experiment.data.batch_size
        begins = read.begins + bad * size
        saved = f"the last good checkpoint is step {good}" if good is not None else "there is no checkpoint yet"
        raise UserError(
            f"step {at}: the loss is {values['loss'][bad]:.4g} and the gradient norm {values['grad_norm'][bad]:.4g}, "
            f"not finite; {saved}; batch: examples {begins} to {begins + size - 1} of the corpus, "
            f"fingerprint {batch_name(read.host[bad])}; lower optim.learning_rate, "
            "or skip such steps with --config.on_nonfinite=skip"
        )

    def evaluate(self, limit: int | None) -> dict[str, float] | None:
        """Validation loss at the current step, over `limit` batches or the whole split; None if a signal ended it."""
        self.progress.status("evaluating")
        with self.meter.pause():
            store, e = self.stores["validation"], self.experiment
            batches = self._on_mesh(eval_batches(store, e.data, limit, self.program.rows, self.tokenizer))
            try:
                found = evaluate(
                    self.program.eval_step,
                    self.state.model,
                    batches,
                    bytes_per_token(e, store),
                    objective=e.objective,
                )
            except _SignalReceived:
                return None
        if limit == e.eval_batches:  # those of another number of batches are not comparable
            self.validation = (self.step, found["loss"])
        if self.log is not None:
            self.log.write(self.step, "validation" if limit == e.eval_batches else "whole_validation", found)
        return found

    def _on_mesh(self, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, jax.Array]]:
        """Batches for an evaluation. Several processes must end it together, and stop at a step instead."""
        for batch in batches:
            if self.signals.received is not None and jax.process_count() == 1:
                raise _SignalReceived
            yield self.program.put(batch)

    def save(self) -> None:
        """Begins to save the current state; its validation loss goes with it if it was just measured."""
        loss = self.validation[1] if self.validation and self.validation[0] == self.step else None
        with self.meter.pause():
            data = {**self.batches.state, **self.base}
            self.writer.save(self.state, self.experiment, self.tokenizer, data, loss)

    def _profile(self, end: bool = False) -> None:
        """Starts and stops the trace around the steps asked for, in whole calls of the step."""
        if self.profile is None:
            return
        (begin, last), where = self.profile, self.workdir / "profile"
        if self._traced_from is None:
            if end:
                self.tell(f"note: --profile_steps={begin}:{last}: none of these steps ran, so there is no trace")
            elif self.step + 1 <= last and begin <= self.step + self.experiment.steps_per_call:
                jax.profiler.start_trace(str(where))
                self._traced_from = self.step + 1
        elif end or self.step >= last:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            self.profile = None
            self.tell(
                f"wrote the trace of steps {self._traced_from} to {self.step} to {where} "
                "(open it with TensorBoard or xprof)"
            )


def bytes_per_token(experiment: Experiment, store: TokenStore) -> float | None:
    """Bytes of text a target stands for; None where the objective does not predict each token of the text once."""
    return store.bytes_per_token if getattr(experiment.objective, "every_token", True) else None


class _SignalReceived(Exception):
    """A signal arrived in the middle of an evaluation."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of one call: their first example's place in the corpus, as read, and on the mesh."""

    begins: int
    host: list[dict[str, np.ndarray]]
    arrays: dict[str, jax.Array]


def batch_name(batch: dict[str, np.ndarray]) -> str:
    """A short name of exactly this batch (of this process's rows)."""
    digest = hashlib.blake2b(digest_size=6)
    for name in sorted(batch):
        digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()
