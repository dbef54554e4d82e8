"""CPU time of this process and its child processes."""

import contextlib
import os
import pathlib

WATCHED: set[int] = set()  # processes that run as long as this one; the time of others counts when they have ended


def watch(pid: int | None) -> None:
    if pid is not None:
        WATCHED.add(pid)


def cpu_seconds() -> float:
    """CPU seconds so far; a process that has ended counts toward its parent."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for pid in WATCHED:
        with contextlib.suppress(OSError):  # only Linux has /proc
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return total
