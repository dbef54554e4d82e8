"""Ctrl-C and SIGTERM: finish the step, save, and print how to resume."""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

import numpy as np


class StopSignals:
    """Within the block, a first SIGINT or SIGTERM only sets `received`; a second SIGINT interrupts at once.

    Python handles signals in the main thread only. In another thread the block leaves them as they are, with a note.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            print("note: not in the main thread: Ctrl-C and SIGTERM do not save first", file=sys.stderr, flush=True)
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        name = signal.Signals(number).name
        print(f"\n{name}: finishing the step (Ctrl-C again quits at once)", file=sys.stderr, flush=True)

    def agreed(self, num_processes: int) -> int | None:
        """The signal that any process received, or None. All processes call it, and so stop at the same step."""
        if num_processes == 1:
            return self.received
        from jax.experimental import multihost_utils

        numbers = multihost_utils.process_allgather(np.int32(self.received or 0))
        return int(np.max(numbers)) or None
