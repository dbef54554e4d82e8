"""The training loop: steps, and what happens between them.

Metrics are read one step late: step n is already on its way when the numbers of step n - 1 are
read, so the device never waits for the host.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from jaxnlp import config as configs
from jaxnlp.data.pipeline import TrainBatches, corpus_name, eval_batches, open_split, open_tokenizer
from jaxnlp.data.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError
from jaxnlp.evals.perplexity import evaluate
from jaxnlp.train import resume
from jaxnlp.train.checkpoint import Reader, Saved, Writer, set_aside
from jaxnlp.train.experiment import Experiment, resolve
from jaxnlp.train.lock import lock
from jaxnlp.train.metrics import MetricLog
from jaxnlp.train.program import Program, build
from jaxnlp.train.progress import Progress
from jaxnlp.train.signals import StopSignals
from jaxnlp.train.speed import Meter
from jaxnlp.train.state import State


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
    state: State
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
        run = Run(experiment, workdir, profile)
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


class Run:
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
            position = saved.data["position"]
            self.state = reader.restore(saved.step, self.program.abstract)
        else:
            self.state = self.program.init()
        self.step = int(self.state.step)
        self.batches = TrainBatches(self.stores["train"], e.data, position, self.program.rows)
        self.writer = Writer(workdir, e.keep_last, e.keep_best)
        self.log = MetricLog(workdir, self.step) if self.first else None
        if self.first:
            configs.save_json(e, workdir / "config.json")
        if saved is not None:
            self.tell(f"resuming at step {self.step:,} of {e.steps:,}")
        self.meter = Meter(e, self.program, self.step)
        self.pending: Any = None  # the newest call's step, batches and metrics, not read yet
        self.validation: tuple[int, float] | None = None  # step and loss of the newest evaluation

    def tell(self, text: str) -> None:
        if self.first:
            print(text, file=sys.stderr, flush=True)

    def _damaged(self, step: int, error: UserError) -> None:
        self.tell(f"note: the checkpoint of step {step} is damaged ({error})")
        if self.first:
            self.tell(f"note: moved it to {set_aside(self.workdir, step)}; falling back to the one before it")

    def _check_corpus(self, saved: Saved) -> None:
        now = corpus_name(self.stores["train"], self.experiment.data)
        if saved.data["corpus"] != now:
            raise UserError(
                f"data.source: the corpus has changed since the checkpoint of step {saved.step} "
                f"(was: {saved.data['corpus']}; is: {now}), and its place there means nothing now; "
                "restore the corpus, or choose another --workdir"
            )

    def go(self) -> Result:
        """Steps until the end or a signal, then a last evaluation and a last checkpoint."""
        e = self.experiment
        with StopSignals() as signals, Progress(e.steps, self.step, self.first) as self.progress:
            stopped = None
            while self.step < e.steps and stopped is None:
                stopped = self.advance(signals)
            self._read_pending()
            validation = None if stopped is not None else self.evaluate(None)
            self.progress.status("saving")
            self.save()
            self.writer.wait()
        self._profile(end=True)
        return Result(e, self.program, self.tokenizer, self.stores, self.state, stopped, validation, self.meter.peak)

    def advance(self, signals: StopSignals) -> int | None:
        """One call of the step, and whatever is due after it. Returns the signal that ends the run, if any."""
        e = self.experiment
        read = self._next_batches()
        self._profile()
        self.state, metrics = self.program.step(self.state, read.arrays)
        self.step += e.steps_per_call
        self._read_pending()
        self.pending = (self.step, read, metrics)
        evaluates, saves = self._due(e.eval_every), self._due(e.checkpoint_every)
        if self.step < e.steps and (evaluates or saves):
            self._read_pending()  # a state is saved only once its loss is known to be finite
            if evaluates:
                self.evaluate(e.eval_batches)
            if saves:
                self.save()
        return self._stopped(signals)

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

    def _stopped(self, signals: StopSignals) -> int | None:
        # Several processes agree on it at log steps only: it costs them a message.
        if jax.process_count() > 1 and not self._due(self.experiment.log_every or 1):
            return None
        return signals.agreed(jax.process_count())

    def _next_batches(self) -> "Batches":
        count, begins = self.experiment.steps_per_call, self.batches.position
        batches = [next(self.batches) for _ in range(count)]
        arrays = self.program.put(batches[0]) if count == 1 else self.program.put_stack(batches)
        return Batches(begins, batches, arrays)

    def _read(self, step: int, read: "Batches", metrics: dict[str, jax.Array]) -> None:
        """Reads the metrics of a call that ended at `step`, and logs and checks them."""
        e = self.experiment
        values = {name: np.atleast_1d(np.asarray(x)) for name, x in metrics.items()}
        if e.on_nonfinite == "stop" and not values["finite"].all():
            self._stop_nonfinite(step, read, values)
        self.meter.add(step)
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
            f"fingerprint {fingerprint(read.host[bad])}; lower optim.learning_rate, "
            "or skip such steps with --config.on_nonfinite=skip"
        )

    def evaluate(self, limit: int | None) -> dict[str, float]:
        """Validation loss at the current step, over `limit` batches or the whole split."""
        self.progress.status("evaluating")
        with self.meter.pause():
            store, e = self.stores["validation"], self.experiment
            batches = (self.program.put(b) for b in eval_batches(store, e.data, limit, self.program.rows))
            found = evaluate(self.program.eval_step, self.state.params, batches, store.bytes_per_token)
        self.validation = (self.step, found["loss"])
        if self.log is not None:
            self.log.write(self.step, "validation", found)
        return found

    def save(self) -> None:
        """Begins to save the current state; its validation loss goes with it if it was just measured."""
        loss = self.validation[1] if self.validation and self.validation[0] == self.step else None
        with self.meter.pause():
            self.writer.save(self.state, self.experiment, self.tokenizer, self.batches.state, loss)

    def _profile(self, end: bool = False) -> None:
        """Starts and stops the trace around the steps asked for."""
        if self.profile is None:
            return
        begin, last = self.profile
        tracing = getattr(self, "_tracing", False)
        if not tracing and not end and begin <= self.step + 1 <= last:
            jax.profiler.start_trace(str(self.workdir / "profile"))
            self._tracing = True
        elif tracing and (end or self.step >= last):
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            self._tracing, self.profile = False, None
            where = self.workdir / "profile"
            self.tell(f"wrote the trace of steps {begin} to {last} to {where} (open it with TensorBoard or xprof)")


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of one call: their first example's place in the corpus, as read, and on the mesh."""

    begins: int
    host: list[dict[str, np.ndarray]]
    arrays: dict[str, jax.Array]


def fingerprint(batch: dict[str, np.ndarray]) -> str:
    """A short name of exactly this batch (of this process's rows)."""
    digest = hashlib.blake2b(digest_size=6)
    for name in sorted(batch):
        digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()
