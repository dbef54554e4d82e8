"""A run's folder, for any loop: lock, checkpoints, metric log, progress, signals and intervals.

  with RunFolder("runs/kmeans") as run:
      centers = run.restore({"centers": first_centers(points)})["centers"]
      run.start(num_steps=100, log_every=10)
      for step in run.steps():
          centers, cost = update(points, centers)
          run.log({"loss": cost})
          if run.due(20):
              run.save({"centers": centers})
      run.save({"centers": centers})

Such a loop may be killed at any moment; started again, it resumes from its newest checkpoint. SIGTERM and Ctrl-C end
`steps()` after the current step. The loop needs no gradients and no mesh.
"""

import contextlib
import pathlib
import signal
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import jax

from jaxnlp.errors import UserError
from jaxnlp.paths import local
from jaxnlp.training.run_folder.best import Best
from jaxnlp.training.run_folder.checkpoint import Reader, Saved, Writer, set_aside
from jaxnlp.training.run_folder.lock import open_workdir
from jaxnlp.training.run_folder.metric_log import MetricLog
from jaxnlp.training.run_folder.progress import Progress
from jaxnlp.training.run_folder.signals import StopSignals
from jaxnlp.training.run_folder.throughput import ThroughputMeter


class RunFolder:
    """The folder of a run, locked by one job at a time. With several processes all must enter it.

    Attributes:
        path: the folder. saved_step: step of the newest intact checkpoint when the folder was opened, or None.
        step, num_steps: steps done, counting the current one, and the length of the run.
        signal: the signal that ended `steps()`, or None. meter: the speed of the steps.

    Raises:
        UserError: on entry, if the folder is in use or not writable, or every checkpoint is damaged.
    """

    def __init__(self, workdir: str | pathlib.Path):
        self.path, self.is_first = local(workdir), jax.process_index() == 0
        self.reader = Reader(self.path)
        self.saved_step: int | None = None
        self.step, self.num_steps = 0, 0
        self.signal: int | None = None
        self._stop = False
        self._progress: Progress | None = None
        self._log: MetricLog | None = None

    def __enter__(self) -> "RunFolder":
        with contextlib.ExitStack() as stack:
            if self.is_first:
                stack.enter_context(open_workdir(self.path))
            self.saved_step = self.reader.newest(self._damaged)
            self.step = self.saved_step or 0
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with self._stack:
            if kind is None and self._progress is not None:
                self.wait()
                if self.signal is not None:
                    saved, name = self.last_saved(), signal.Signals(self.signal).name
                    state = "no checkpoint" if saved is None else f"the newest checkpoint is of step {saved:,}"
                    self.info(f"{name}: stopped at step {self.step:,} of {self.num_steps:,}; {state}")

    def saved(self) -> Saved | None:
        """The config, tokenizer and feed state of the newest checkpoint, as the supervised loop saves them."""
        return None if self.saved_step is None else self.reader.read(self.saved_step)

    def record(self, name: str, default: Any = None) -> Any:
        """A JSON record of the newest checkpoint; `default` for a new run."""
        return default if self.saved_step is None else self.reader.record(self.saved_step, name)

    def restore(self, trees: Mapping[str, Any]) -> dict[str, Any]:
        """The newest checkpoint's trees by item name, with the shardings of `trees`; for a new run, `trees` itself."""
        if self.saved_step is None:
            return dict(trees)
        return {name: self.reader.restore_item(self.saved_step, name, tree) for name, tree in trees.items()}

    def start(
        self,
        num_steps: int,
        log_every: int = 10,
        keep_last: int = 2,
        keep_best: int = 0,
        best: Best | None = None,
        *,
        meter: ThroughputMeter | None = None,
        status: str = "compiling ...",
    ) -> None:
        """Opens the log and the progress bar, and takes over SIGINT and SIGTERM.

        Args:
            num_steps: length of the run, counting the steps already done.
            log_every: interval of the rows of `metrics.jsonl`; 0 logs only the last step.
            keep_last, keep_best, best: checkpoints kept, as `Writer` describes.
            meter: measures the speed; None measures steps per second.
            status: shown until the first step has ended.
        """
        self.num_steps, self.log_every = num_steps, log_every
        self.meter = ThroughputMeter(num_steps, 1 + (log_every or 10)) if meter is None else meter
        self._writer = Writer(self.path, keep_last, keep_best, best)
        self._stack.callback(self._close_writer)
        if self.is_first:
            self._log = MetricLog(self.path, self.step)
            self._stack.callback(self._log.close)
        if self.saved_step is not None:
            self.info(f"resuming at step {self.step:,} of {num_steps:,}")
        self._signals = self._stack.enter_context(StopSignals())
        self._progress = self._stack.enter_context(Progress(num_steps, self.step, self.is_first, status))

    def steps(self, stride: int = 1) -> Iterator[int]:
        """Yields the number of each remaining step, counted from 1, until the end, a signal or `stop`.

        Args:
            stride: steps in one iteration; the number yielded is that of its last step.
        """
        self._check_started("steps")
        while self.step < self.num_steps and self.signal is None and not self._stop:
            self.step += stride
            yield self.step
            # Several processes agree on a signal only at log steps, since that takes communication.
            if jax.process_count() == 1 or self.due(self.log_every or 1):
                self.signal = self._signals.agreed(jax.process_count())

    def stop(self, reason: str) -> None:
        """Ends `steps()` after the current step. With several processes all must call it at the same step."""
        self._stop = True
        self.info(reason)

    def due(self, every: int) -> bool:
        """Whether the current step is a multiple of `every`; 0 is never due."""
        return every > 0 and self.step % every == 0

    @property
    def interrupted(self) -> bool:
        """Whether a signal has arrived. Always False with several processes, since none may act on it alone."""
        return self._signals.received is not None and jax.process_count() == 1

    def interrupt(self) -> None:
        """Ends the run because of the signal that has arrived, as in the middle of an evaluation."""
        self.signal = self._signals.received

    def log(
        self, metrics: Mapping[str, Any], step: int | None = None, ended: float | None = None, note: str = ""
    ) -> None:
        """Counts a step. If `log_every` is due, writes its metrics and shows them.

        Args:
            metrics: scalars, read from the device only if they are due. step: by default the current one.
            ended: when the step ended, on the clock of `meter.now()`; None: now. note: shown after the speed.
        """
        self._check_started("log")
        step = self.step if step is None else step
        self.meter.add(step, ended)
        if step != self.num_steps and (not self.log_every or step % self.log_every):
            return
        row = {name: float(value) for name, value in metrics.items()}
        speed = self.meter.speed()
        self.write("train", {**row, **speed}, step)
        name = "loss" if "loss" in row else next(iter(row), None)
        metric_text = "" if name is None else f"{name} {row[name]:.4f}  "
        if self._progress is not None:
            self._progress.update(step, f"{metric_text}{_speed_text(speed)}{note}", self.meter.seconds_left(step))

    def write(self, kind: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Writes one row to `metrics.jsonl` and TensorBoard. kind: as "train" or "validation"."""
        if self._log is not None:
            self._log.write(self.step if step is None else step, kind, {name: float(x) for name, x in metrics.items()})

    def info(self, text: str) -> None:
        """Prints a line on stderr, in the first process."""
        if self._progress is not None:
            self._progress.print(text)
        elif self.is_first:
            print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def pause(self, status: str) -> Iterator[None]:
        """Excludes the block from the measured speed. status: shown by the bar meanwhile, as "evaluating"."""
        if self._progress is not None:
            self._progress.status(status)
        with self.meter.pause():
            yield

    def save(
        self, trees: Mapping[str, Any], records: Mapping[str, Any] | None = None, score: float | None = None
    ) -> None:
        """Begins to save a checkpoint of the current step in the background; a step already saved is left as it is.

        Args:
            trees: by name, pytrees of arrays. records: by name, JSON values.
            score: the value of `best` at this step if it was measured, for keep_best.

        Raises:
            UserError: this save or the one before it failed, as on a full disk.
        """
        self._check_started("save")
        with self.pause("saving"):
            self._writer.save(self.step, trees, records or {}, score)

    def wait(self) -> None:
        """Waits until the newest checkpoint is on disk. Raises UserError if it could not be written."""
        self._writer.wait()

    def last_saved(self) -> int | None:
        """The step of the newest checkpoint on disk; None if there is none."""
        return max(self.reader.steps(), default=None)

    def _check_started(self, method: str) -> None:
        if self._progress is None:
            raise UserError(f"RunFolder.{method}: the run has not started; call start(num_steps) first")

    def _close_writer(self) -> None:
        with contextlib.suppress(Exception):  # a failed save has raised before
            self._writer.close()

    def _damaged(self, step: int, error: UserError) -> None:
        self.info(f"note: the checkpoint of step {step} is damaged ({error})")
        if self.is_first:
            self.info(f"note: moved it to {set_aside(self.path, step)}; falling back to the one before it")


def _speed_text(speed: Mapping[str, float]) -> str:
    if "steps_per_second" in speed:
        return f"{speed['steps_per_second']:,.1f} steps/s"
    rate = speed.get("tokens_per_second")
    return f"{rate:,.0f} tok/s" if rate else "- tok/s"
