"""Interleaved measurement: each contender is a process that waits for its turn.

The machine may be shared and its speed drifts, so contenders are timed in alternating order (A B C, C B A, ...) and
compared within each round: a ratio is the median over rounds of paired ratios. A contender that is not being timed is
stopped (SIGSTOP), so that its idle threads use no CPU time.

A contender is a script that calls `serve`. It may use another library and run in another environment, so this file
depends only on the standard library.
"""

import ctypes
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# ----------------------------------------------------------------- in a contender


def protocol() -> Any:
    """Returns stdout for messages to the driver and redirects other prints to stderr. Call it before other imports."""
    real = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return real


def keep_freed_memory() -> None:
    """The allocator settings of `jaxnlp.runtime`, for a contender that cannot import it."""
    mallopt = ctypes.CDLL(None).mallopt
    assert all(mallopt(*s) for s in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 64 << 20)))


def serve(
    out: Any, step: Callable[[], Any], sync: Callable[[], Any], warmup: int = 3, info: dict | None = None
) -> None:
    """Serves timing requests of the driver. `step()` does one unit of work, `sync()` waits until it is done."""
    for _ in range(warmup):
        step()
    sync()
    out.write(json.dumps({"info": info or {}}) + "\n")
    for line in sys.stdin:
        count = int(line)
        if not count:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            step()
        sync()
        out.write(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}) + "\n")


# ----------------------------------------------------------------- in the driver


@dataclasses.dataclass
class Contender:
    """One row of a table.

    command: the process to run. units: work per step, such as tokens. flops: per step, 0 if not counted.
    walls, cpus: wall-clock and CPU seconds per step, one value per round. count: steps per turn.
    """

    name: str
    command: list[str]
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    units: float = 1.0
    flops: float = 0.0
    walls: list[float] = dataclasses.field(default_factory=list)
    cpus: list[float] = dataclasses.field(default_factory=list)
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str = ""
    count: int = 1
    process: Any = None

    def start(self, logs: pathlib.Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / (self.name.replace(" ", "_").replace("/", "_") + ".log")
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.env},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
        )
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            tail = log.read_text().strip().splitlines()[-1:]
            self.error = f"did not start: {' '.join(tail)[:200]} (log: {log})"
            return
        self.info = json.loads(line)["info"]
        self.process.send_signal(signal.SIGSTOP)

    def ask(self, count: int) -> dict[str, float]:
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended while it was timed")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()


def measure(
    contenders: list[Contender], rounds: int, seconds: float, logs: pathlib.Path, log: Callable[[str], Any]
) -> None:
    """Appends one value per round to `walls` and `cpus` (seconds per step) of each contender.

    Args:
        seconds: duration of one contender's turn.
    """
    try:
        for c in contenders:
            log(f"starting {c.name}")
            c.start(logs)
            if c.error:
                log(f"  {c.error}")
        live = [c for c in contenders if not c.error]
        for c in live:
            step_seconds = c.ask(1)["wall"]
            step_seconds = min(
                step_seconds,
                c.ask(max(1, min(20, int(0.3 / step_seconds))))["wall"] / max(1, min(20, int(0.3 / step_seconds))),
            )
            c.count = max(1, round(seconds / step_seconds))
        for i in range(rounds):
            log(f"round {i + 1} of {rounds}")
            for c in live if i % 2 == 0 else live[::-1]:
                answer = c.ask(c.count)
                c.walls.append(answer["wall"] / c.count)
                c.cpus.append(answer["cpu"] / c.count)
    finally:
        for c in contenders:
            c.stop()


def row(c: Contender, bases: dict[str, Contender], limit: float | None = None) -> dict[str, Any]:
    """A contender's results, with its speed relative to each base: median of paired ratios, and quartiles.

    Args:
        limit: FLOP/s of a matrix product on this machine.
    """
    if c.error or not c.walls:
        return {"name": c.name, "error": c.error or "not measured"}
    wall = statistics.median(c.walls)
    entry: dict[str, Any] = {"name": c.name, "ms": wall * 1e3, "rate": c.units / wall, "rounds": len(c.walls)}
    entry["cores"] = statistics.median(a / b for a, b in zip(c.cpus, c.walls, strict=True))
    if c.flops:
        entry["gflops"] = c.flops / wall / 1e9
        if limit:
            entry["of_limit"] = c.flops / wall / limit
    for name, base in bases.items():
        if base.walls:
            ratios = [b / a for a, b in zip(c.walls, base.walls, strict=True)]
            entry[f"over {name}"] = [statistics.median(ratios), *quartiles(ratios)]
    return entry | ({"info": c.info} if c.info else {})


def quartiles(xs: list[float]) -> tuple[float, float]:
    if len(xs) < 3:
        return min(xs), max(xs)
    q = statistics.quantiles(xs, n=4)
    return q[0], q[2]
