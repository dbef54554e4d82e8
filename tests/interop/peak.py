"""Prints the increase of this process's peak memory by loading a checkpoint, in bytes; see test_memory.py."""

import pathlib
import sys

from jaxnlp.interop.huggingface import load


def memory(field: str) -> int:
    """A field of /proc/self/status (VmRSS: current; VmHWM: peak), in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    load(sys.argv[1])  # a small checkpoint first, for imports, device initialisation and compiled programs
    before = memory("VmRSS")
    _, params, _ = load(sys.argv[2])
    print(memory("VmHWM") - before)
