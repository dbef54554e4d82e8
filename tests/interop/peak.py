"""Prints how far loading a checkpoint raised this process's memory above what it had, in bytes; see test_memory.py."""

import pathlib
import sys

from jaxnlp.interop.huggingface import load


def memory(field: str) -> int:
    """A field of /proc/self/status (VmRSS: now; VmHWM: at its highest), in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    load(sys.argv[1])  # a small one first: imports, the first device, compiled programs
    before = memory("VmRSS")
    _, params, _ = load(sys.argv[2])
    print(memory("VmHWM") - before)
