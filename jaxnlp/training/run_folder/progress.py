"""Progress of a run on the terminal."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any


class Progress:
    """A live bar with step, metrics, speed and time left; without a terminal, one line every ten seconds.

    Args:
        total: number of steps of the run. start: number of steps already done.
        show: False prints nothing (every process but the first). status: shown until the first update.
    """

    def __init__(self, total: int, start: int, show: bool = True, status: str = "compiling ..."):
        self._total, self._start, self._show, self._status = total, start, show, status
        self._last_line = 0.0
        self._bar: Any = None
        self._live = show and sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = ("{task.description}", "{task.completed:,.0f}/{task.total:,.0f}", "{task.fields[text]}")
            parts = [TextColumn(columns[0]), BarColumn(bar_width=24), TextColumn(columns[1]), TextColumn(columns[2])]
            self._bar = Progress(*parts, console=Console(stderr=True), refresh_per_second=4)
            self._task = self._bar.add_task("training", total=self._total, completed=self._start, text=self._status)
            self._bar.start()
        elif self._show:
            print(self._status, file=sys.stderr, flush=True)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, text: str, seconds_left: float | None) -> None:
        """Shows the step and the time left. text: metrics and speed, as "loss 2.1234  1,234 tok/s"."""
        time_left = clock(seconds_left) if seconds_left is not None else "-"
        text = f"{text}  {time_left} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text, description="training")
        elif self._show and (time.monotonic() - self._last_line > 10 or step >= self._total):
            self._last_line = time.monotonic()
            print(f"step {step:,}/{self._total:,}  {text}", file=sys.stderr, flush=True)

    def status(self, text: str) -> None:
        """Shows an activity between steps, as "evaluating"."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)

    def print(self, text: str) -> None:
        """Prints a permanent line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._show:
            print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """A duration as 1:02:03 or 2:03."""
    seconds = max(0, round(seconds))
    hours, remainder = divmod(seconds, 3600)
    return f"{hours}:{remainder // 60:02d}:{remainder % 60:02d}" if hours else f"{remainder // 60}:{remainder % 60:02d}"


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Shows `text` and the elapsed time while the block runs; without a terminal, prints one line."""
    if not sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(text, total=None)
        yield
