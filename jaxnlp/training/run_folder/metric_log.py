"""The metric log of a run: a JSON-lines file, TensorBoard events, and a figure."""

import contextlib
import math
import pathlib
import time
from typing import Any

from jaxnlp import strict_json
from jaxnlp.errors import UserError
from jaxnlp.renamed import EVALUATORS
from jaxnlp.scratch import replacing, write_errors
from jaxnlp.training.run_folder.event_file import EventFile

LOG = "metrics.jsonl"
CURVES = "curves.png"
COLUMNS = ("step", "kind", "time")  # of each row, beside its metrics
REMEDY = "checkpoints are intact; free some space, and run the same command again to resume"


class MetricLog:
    """Writes metrics to `metrics.jsonl` and to TensorBoard event files beside it.

    Args:
        workdir: the run's folder. step: the step at which the run starts or resumes. Rows of later steps, left by
            a run that died after its last checkpoint, are dropped.
    """

    def __init__(self, workdir: pathlib.Path, step: int = 0):
        self.path = workdir / LOG
        rows = [row for row in read_log(self.path) if row["step"] <= step]
        with replacing(self.path, REMEDY) as new:
            new.write_text("".join(strict_json.dumps(row) + "\n" for row in rows))
        with write_errors(self.path, REMEDY):
            self._file = self.path.open("a", buffering=1)
            self._board = EventFile(workdir / "tensorboard", first_step=step + 1 if step else None)

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Writes one row. kind: "train", "validation", ... Raises UserError for a metric with the name of a column."""
        if reserved := [name for name in COLUMNS if name in values]:
            raise UserError(f"metric {reserved[0]!r}: the log has a column of this name; rename the metric")
        with write_errors(self.path, REMEDY):
            row = {"step": step, "kind": kind, "time": round(time.time(), 3), **values}
            self._file.write(strict_json.dumps(row) + "\n")
            self._board.add_scalars({f"{kind}/{name}": value for name, value in values.items()}, step)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # reported when the row was written
            self._file.close()
        with contextlib.suppress(OSError):
            self._board.close()


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, with the current names of evaluations. A line cut short by a crash is skipped.

    A number that is not finite may be null with its reason (`strict_json`), a string as "NaN", or a bare NaN.
    """
    if not path.exists():
        return []
    rows = map(_row, path.read_text(errors="replace").splitlines())
    return [{**row, "kind": EVALUATORS.get(row["kind"], row["kind"])} for row in rows if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    """A line's fields; None for a line that is not a row of metrics."""
    try:
        row = strict_json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or not isinstance(row.get("kind"), str):
        return None
    numbers = {name: math.nan if x is None else strict_json.NAMES.get(str(x), x) for name, x in row.items()}
    return {**{name: x for name, x in numbers.items() if isinstance(x, (int, float))}, "kind": row["kind"]}


def smooth(values: list[float], window: int = 10) -> list[float]:
    """The moving average: the mean of each value and up to `window - 1` values before it."""
    return [sum(part) / len(part) for part in (values[max(0, i - window + 1) : i + 1] for i in range(len(values)))]


def plot(workdir: pathlib.Path, loss_unit: str, baselines: dict[str, float] | None = None) -> pathlib.Path | None:
    """Plots loss, learning rate, gradient norm and tokens per second to `curves.png`.

    Args:
        loss_unit: label of the loss axis, as "nats/token".
        baselines: name -> loss, drawn as horizontal lines.

    Returns:
        The figure's path, or None if nothing has been logged.
    """
    from matplotlib.figure import Figure

    rows = read_log(workdir / LOG)
    train = [row for row in rows if row["kind"] == "train" and "learning_rate" in row]
    if not train:
        return None
    steps = [row["step"] for row in train]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    loss, rate, norm, speed = axes.flat
    losses = [row["loss"] for row in train]
    dot = "o" if len(steps) == 1 else ""  # a line through one point cannot be seen
    loss.plot(steps, losses, dot, color="C0", alpha=0.3, label="train, each logged batch")
    loss.plot(steps, smooth(losses), dot, color="C0", label="train, smoothed")
    valid = [row for row in rows if row["kind"] == "validation"]
    if valid:
        loss.plot(
            [row["step"] for row in valid],
            [row["loss"] for row in valid],
            "o-",
            color="C3",
            markersize=4,
            label="validation",
        )
    for i, (name, value) in enumerate((baselines or {}).items()):
        loss.axhline(value, color="0.4", linestyle=(":", "--", "-.")[i % 3], linewidth=1, label=name)
    loss.legend()
    loss.set_ylabel(f"loss ({loss_unit})")
    rate.plot(steps, [row["learning_rate"] for row in train], dot, color="C2")
    rate.set_ylabel("learning rate")
    norm.plot(steps, [row["grad_norm"] for row in train], dot, color="C1", alpha=0.8)
    norm.set_ylabel("gradient norm (before clipping)")
    norm.set_yscale("log")
    for axis in (norm.yaxis.set_major_formatter, norm.yaxis.set_minor_formatter):
        axis("{x:g}")
    timed = [row for row in train if row.get("tokens_per_second")]
    speed.plot([row["step"] for row in timed], [row["tokens_per_second"] for row in timed], dot, color="C4")
    speed.set_ylabel("tokens per second")
    speed.set_ylim(bottom=0)
    for panel in axes.flat:
        panel.grid(alpha=0.25)
    for panel in axes[1]:
        panel.set_xlabel("step")
    figure.suptitle(f"{workdir}", fontsize=10)
    path = workdir / CURVES
    with replacing(path) as new:
        figure.savefig(new, dpi=110)
    return path
