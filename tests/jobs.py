"""Runs an entry point as a job of several local processes that share eight virtual devices."""

import socket
import time

from tests.entry import ROOT, Entry, start

DEVICES = 8
MESHED = ROOT / "tests" / "training" / "meshed.py"


def begin(
    processes: int, module: str, *args: str, devices: int = DEVICES, only: dict[int, tuple[str, ...]] | None = None
) -> list[Entry]:
    """Starts `python -m module args` in each process.

    Args:
        devices: of all processes together. only: further arguments for single processes, by their index.
    """
    running = []
    address = f"localhost:{free_port()}"
    for i in range(processes):
        place = (f"--coordinator_address={address}", f"--num_processes={processes}", f"--process_id={i}")
        arguments = (*args, *(only or {}).get(i, ()), *(place if processes > 1 else ()))
        running.append(start(module, *arguments, env={"JAX_NUM_CPU_DEVICES": str(devices // processes)}))
    return running


def ended(running: list[Entry], seconds: float = 240) -> list[Entry]:
    """Waits for the processes; asserts that all succeed."""
    for entry in running:
        assert entry.wait(seconds).code == 0, entry.err
    return running


def job(processes: int, module: str, *args: str, devices: int = DEVICES) -> list[Entry]:
    """Runs a job to completion."""
    return ended(begin(processes, module, *args, devices=devices))


def config(corpus, table: str, *overrides: str) -> tuple[str, ...]:
    """Flags of the small run over a mesh, a preset with sizes: ZERO3,data=4,fsdp=2."""
    return (f"--config={MESHED}:{corpus},{table}", *(f"--config.{o}" for o in overrides))


def wait_until(ready, running: list[Entry], seconds: float = 120) -> None:
    """Waits until `ready()` holds while all processes run."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, running[0].err
        assert all(entry.code is None for entry in running), [entry.err for entry in running]
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]
