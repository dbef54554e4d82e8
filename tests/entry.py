"""Runs an entry point as its own process, without paying for its imports each time.

A fork server imports JAX and other large packages once; each call is a fork that runs the module as
`python -m` does. It is a real process, which can be killed and has its own exit status.
"""

import atexit
import contextlib
import dataclasses
import gc
import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile
import time
from multiprocessing import forkserver

from tests.cpu_time import watch

ROOT = pathlib.Path(__file__).resolve().parents[1]
PRELOAD = [
    *("jax", "flax.linen", "optax", "orbax.checkpoint", "grain", "ml_collections.config_flags", "rich.progress"),
    *("matplotlib.pyplot", "jaxnlp.cli", "jaxnlp.training.load", "jaxnlp.training.loops.supervised"),
]


@dataclasses.dataclass
class Entry:
    """A running entry point, or one that has ended."""

    process: multiprocessing.Process
    folder: pathlib.Path

    def wait(self, timeout: float = 240) -> "Entry":
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()  # otherwise pytest would wait for it on exit
            self.process.join(5)
            raise AssertionError(f"still running after {timeout} s:\n{self.err}")
        return self

    @property
    def code(self) -> int | None:
        return self.process.exitcode

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()


def start(module: str, *args: str, cwd: pathlib.Path = ROOT, env: dict[str, str] | None = None) -> Entry:
    """Starts `python -m module args` in a fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    folder = pathlib.Path(tempfile.mkdtemp())
    process = context.Process(
        target=_main,
        args=(module, args, str(cwd), {**os.environ, "JAX_NUM_CPU_DEVICES": "1", **(env or {})}, str(folder)),
    )
    process.start()
    watch(getattr(forkserver._forkserver, "_forkserver_pid", None))
    return Entry(process, folder)


def run(module: str, *args: str, cwd: pathlib.Path = ROOT, env: dict[str, str] | None = None) -> Entry:
    """Runs it to its end."""
    return start(module, *args, cwd=cwd, env=env).wait()


def wait_for(condition, entry: Entry, timeout: float = 120) -> None:
    """Waits until `condition()` holds while the entry point is running."""
    end = time.monotonic() + timeout
    while not condition():
        assert entry.process.is_alive(), f"ended with {entry.code} before it was expected to:\n{entry.err}"
        assert time.monotonic() < end, f"waited {timeout} s:\n{entry.err}"
        time.sleep(0.005)


def _main(module: str, args: tuple[str, ...], cwd: str, env: dict[str, str], folder: str) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT, 0o644), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    gc.freeze()  # otherwise its first collection would write to, and so copy, every page shared with the fork server
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    import jax

    with contextlib.suppress(AttributeError):
        jax.config.update("jax_num_cpu_devices", int(env.get("JAX_NUM_CPU_DEVICES", "1")))
    sys.path.insert(0, cwd)
    sys.argv = [module, *args]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked child would skip them, and would not leave jax.distributed
