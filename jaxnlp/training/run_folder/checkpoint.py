"""Checkpoints: written atomically in the background, and verified when read.

A checkpoint is a folder `checkpoints/<step>`. It holds named trees of arrays and named JSON records, and MANIFEST.json
with the size of every file and the CRC-32 of all but the largest. The supervised loop saves
    params, rest        trees: the parameters, and all other state; apart, so that evaluation reads only the parameters
    data                record: the state of the feed, as the position in the corpus
    config, tokenizer   records
    versions            record, in every checkpoint
Another loop chooses its own names. Orbax writes a checkpoint under a temporary name and renames it last, so a killed
process leaves no partial checkpoint; the manifest detects later changes of the files.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import pathlib
import platform
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxnlp import config as configs
from jaxnlp import distributed, strict_json
from jaxnlp.data import tokenizer as tokenizers
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError, reading
from jaxnlp.paths import local
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.run_folder.best import VALIDATION_LOSS, Best
from jaxnlp.training.step.state import TrainState, from_saved_trees, saved_trees

MANIFEST = "MANIFEST.json"
CRC_LIMIT = 256 << 20  # bytes; larger files are checked by size alone
PACKAGES = ("jaxnlp", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
CAUSES = "No space left on device|Disk quota exceeded|File too large|Read-only file system|Input/output error"
LATE = ("commit_success.txt", "_CHECKPOINT_METADATA")  # written after the manifest


@dataclasses.dataclass(frozen=True)
class Saved:
    """The decoded records of a checkpoint."""

    step: int
    experiment: Experiment
    tokenizer: Tokenizer
    data: dict[str, Any]
    versions: dict[str, str]


class Reader:
    """The checkpoints in a run's folder. Every method that reads one raises UserError if it cannot."""

    def __init__(self, workdir: str | pathlib.Path):
        self.folder = local(workdir).absolute() / "checkpoints"

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and p.is_dir())

    def newest(self, damaged: Callable[[int, UserError], Any]) -> int | None:
        """The newest step whose checkpoint is intact. `damaged` is called with each damaged one after it and its error.

        Raises:
            UserError: there are checkpoints and every one is damaged.
        """
        errors: dict[int, UserError] = {}
        for step in reversed(self.steps()):
            try:
                self.verify(step)
            except UserError as e:
                errors[step] = e
                continue
            for bad, error in errors.items():
                damaged(bad, error)
            return step
        if errors:
            reasons = "; ".join(f"step {step}: {e}" for step, e in errors.items())
            raise UserError(f"{self.folder}: every checkpoint is damaged ({reasons}); choose another --workdir")
        return None

    def best(self) -> int | None:
        """The step with the best score, among those scored with the newest one's metric; None if none has a score."""
        scores = {step: self.score(step) for step in self.steps()}
        scored = {step: entry for step, entry in scores.items() if entry is not None}
        if not scored:
            return None
        best = scored[max(scored)][0]
        return min((step for step in scored if scored[step][0] == best), key=lambda step: best.cost(scored[step][1]))

    def score(self, step: int) -> tuple[Best, float] | None:
        """The metric that ranked a checkpoint when it was saved, and its value; None if it was not measured then."""
        try:
            return read_score(json.loads((self.folder / str(step) / "metrics" / "metrics").read_text()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None

    def verify(self, step: int) -> None:
        """Raises UserError naming the first file that is missing or changed since it was written."""
        folder = self.folder / str(step)
        with reading(folder / MANIFEST, "missing or damaged"):
            manifest = json.loads((folder / MANIFEST).read_text())
            for name, (size, crc) in manifest.items():
                path = folder / name
                if not path.is_file():
                    raise UserError(f"{path}: missing")
                if path.stat().st_size != size:
                    raise UserError(f"{path}: {path.stat().st_size} bytes, expected {size}")
                if crc is not None and _crc(path) != crc:
                    raise UserError(f"{path}: its content has changed since it was written")

    def read(self, step: int) -> Saved:
        """A checkpoint's config, tokenizer, feed state and versions."""
        items = {name: self.record(step, name) for name in ("config", "tokenizer", "data", "versions")}
        with reading(self.folder / str(step), "its config or tokenizer is damaged, or of another version"):
            tokenizer, experiment = tokenizers.from_json(items["tokenizer"]), configs.from_dict(items["config"])
        if not isinstance(experiment, Experiment):
            raise UserError(f"{self.folder / str(step)}: its config is a {type(experiment).__name__}; damaged")
        return Saved(step, experiment, tokenizer, items["data"], items["versions"])

    def record(self, step: int, item: str) -> Any:
        """One JSON record, as "data"."""
        path = self.folder / str(step) / item / "metadata"
        if not path.parent.exists():
            raise UserError(f"{path.parent.parent}: has no record {item!r}; a loop without it saved this checkpoint")
        try:
            return strict_json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as e:
            raise UserError(f"{path}: damaged ({e})") from None

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The training state of a step, without frozen parameters, with the shardings of `target`'s abstract leaves.
        The mesh and the number of processes may differ from those that saved it."""
        return from_saved_trees({name: self.restore_item(step, name, x) for name, x in saved_trees(target).items()})

    def restore_item(self, step: int, item: str, target: Any) -> Any:
        """One tree of arrays, as "params"."""
        import orbax.checkpoint as ocp

        path = self.folder / str(step) / item
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                return checkpointer.restore(path, args=ocp.args.StandardRestore(_as_arrays(target)))
        except Exception as e:  # orbax and tensorstore raise many types, bare Exception among them
            reason = " ".join(str(e).split())[:300]
            raise UserError(f"{path}: cannot be restored ({type(e).__name__}: {reason})") from e


class Writer:
    """Saves checkpoints in the background and removes those beyond the limits.

    Args:
        workdir: the run's folder. keep_last, keep_best: how many of the newest, and of those with the best score, to
            keep. best: the metric of the scores; None: checkpoints have no score.
    """

    def __init__(
        self, workdir: str | pathlib.Path, keep_last: int, keep_best: int, best: Best | None = VALIDATION_LOSS
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

        self._ocp, self._reader, self._best = ocp, Reader(workdir), best
        self.folder = self._reader.folder
        ranked = keep.BestN(get_metric_fn=self._cost, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy([keep.LatestN(keep_last), ranked]),
            best_fn=None if best is None else self._cost,  # without it the manager does not write the metrics
            best_mode="min",
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._write_manifest,
                barrier_sync_fn=_unless_failed(ocp.multihost.get_barrier_sync_fn()),
            ),
        )
        self._saving = -1
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, trees: Mapping[str, Any], records: Mapping[str, Any], score: float | None = None) -> None:
        """Begins to save; the arrays may be donated as soon as this returns. A step already saved is left as it is;
        a score is added if it has none, as after an evaluation that was interrupted.

        Args:
            trees: by item name, pytrees of arrays. records: by item name, JSON values.
            score: the metric of `best` at this step if it was measured, for keep_best.

        Raises:
            UserError: this save or the one before it failed, as on a full disk. Older checkpoints are intact.
        """
        with _clear_errors(self._reader, self._saving):
            self._manager.wait_until_finished()
        if step in self._reader.steps():
            if score is not None and self._reader.score(step) is None:
                self._add_score(step, score)
            return
        self._check_room(step, trees)
        args = self._ocp.args
        items = {name: args.StandardSave(_as_arrays(tree)) for name, tree in trees.items()}
        json_items = {**records, "versions": versions()}
        items |= {name: args.JsonSave(strict_json.encoded(record)) for name, record in json_items.items()}
        metrics = None if score is None else self._metrics(score)
        self._saving = step
        with _clear_errors(self._reader, step):
            self._manager.save(step, args=args.Composite(**items), metrics=metrics)

    def _add_score(self, step: int, score: float) -> None:
        if distributed.first():
            file = self.folder / str(step) / "metrics" / "metrics"
            with _clear_errors(self._reader, step):
                file.parent.mkdir(exist_ok=True)
                temporary = file.with_name("metrics.tmp")
                temporary.write_text(strict_json.dumps(self._metrics(score)))
                temporary.replace(file)

    def _metrics(self, score: float) -> dict[str, Any]:
        """The score as JSON; one that is not finite is a string, which `float` reads."""
        return {"best": str(self._best), "score": score if math.isfinite(score) else strict_json.name_of(score)}

    def _cost(self, metrics: dict[str, Any]) -> float:
        best, score = read_score(metrics)
        return best.cost(score) if best == self._best else float("inf")

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises UserError if it failed."""
        with _clear_errors(self._reader, self._saving):
            self._manager.wait_until_finished()

    def close(self) -> None:
        try:
            self._manager.close()
        finally:
            _remove_unfinished(self._reader, self._saving)  # Orbax's threads may have written after the error

    def _write_manifest(self) -> None:
        # Orbax calls this when every item is complete and before it renames the folder.
        for folder in self.folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in LATE)
            manifest = {p.relative_to(folder).as_posix(): (p.stat().st_size, _crc(p)) for p in files}
            (folder / MANIFEST).write_text(strict_json.dumps(manifest, indent=0))

    def _check_room(self, step: int, trees: Mapping[str, Any]) -> None:
        needed = sum(_num_bytes(x) for x in jax.tree.leaves(trees))
        available = shutil.disk_usage(self.folder).free
        if available < needed:
            raise UserError(
                f"{self.folder}: no room for the checkpoint of step {step} ({available / 1e6:,.1f} MB free, "
                f"{needed / 1e6:,.1f} MB needed); {_intact(self._reader)}; free some space, "
                "and run the same command again to resume"
            )


def _as_arrays(tree: Any) -> Any:
    """The tree with NumPy's scalars as arrays, since Orbax saves arrays only."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, np.generic) else x, tree)


def _num_bytes(x: Any) -> int:
    """Bytes of an array that this process writes."""
    if isinstance(x, jax.Array):
        return sum(shard.data.nbytes for shard in x.addressable_shards if shard.replica_id == 0)
    return np.asarray(x).nbytes


def read_score(metrics: dict[str, Any]) -> tuple[Best, float]:
    """(metric, value) from a checkpoint's metrics; earlier versions saved the validation loss alone."""
    if "loss" in metrics:
        return VALIDATION_LOSS, float(metrics["loss"])
    return Best.parse(metrics["best"]), float(metrics["score"])


def _unless_failed(barrier: Callable[..., None]) -> Callable[..., None]:
    """The barrier of a save, skipped by a process whose part has failed, so that it raises its error at once.

    Orbax would make it wait for the other processes, which wait for its part: all would wait until the timeout.
    """
    return lambda **kwargs: barrier(**kwargs) if sys.exc_info()[1] is None else None


def set_aside(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Moves a damaged checkpoint to `damaged/`, so that the run can save that step again. Nothing is deleted."""
    target = workdir / "damaged" / f"{step}-{time.time_ns():x}"
    target.parent.mkdir(exist_ok=True)
    (workdir / "checkpoints" / str(step)).rename(target)
    return target


def _intact(reader: Reader) -> str:
    steps = reader.steps()
    return (
        f"the older checkpoints are intact (step {', '.join(map(str, steps))})"
        if steps
        else "there is no older checkpoint"
    )


@contextlib.contextmanager
def _clear_errors(reader: Reader, step: int) -> Iterator[None]:
    """Turns the error of a failed save into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # orbax and tensorstore raise many types, bare Exception among them
        _remove_unfinished(reader, step)
        cause = re.search(CAUSES, str(e))
        reason = cause.group() if cause else " ".join(str(e).split())[:300]
        raise UserError(
            f"{reader.folder}: the checkpoint of step {step} was not written ({reason}); {_intact(reader)}; "
            "fix the cause, and run the same command again to resume"
        ) from e


def _remove_unfinished(reader: Reader, step: int) -> None:
    """Removes what a failed save has written: on a full disk, it is in the way of the next run."""
    if distributed.first():
        for unfinished in reader.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)


def _crc(path: pathlib.Path) -> int | None:
    if path.stat().st_size > CRC_LIMIT:
        return None
    return zlib.crc32(path.read_bytes())


def versions() -> dict[str, str]:
    """Versions of Python, the platform and `PACKAGES`, and the JAX backend."""
    installed = {"python": sys.version.split()[0], "platform": platform.platform(), "backend": jax.default_backend()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            from jaxnlp import __version__

            installed[name] = __version__ if name == "jaxnlp" else "?"
    return installed
