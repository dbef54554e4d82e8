"""TensorBoard's event file, written in the calling thread.

tensorboardX writes from a thread of its own and passes events by a queue of ten. When that thread fails, as on a full
disk, the queue fills and the caller waits forever. Its message types and checksums are used here.
"""

import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any


class EventFile:
    """A new event file in `folder`, which is created if missing.

    Args:
        first_step: TensorBoard drops the events of other files from this step; None drops none.

    Every method raises OSError if the disk is full.
    """

    def __init__(self, folder: pathlib.Path, first_step: int | None = None):
        from tensorboardX.proto import event_pb2

        self._messages: Any = event_pb2  # its classes are made when it is imported
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}").open("ab")
        self._write(self._messages.Event(file_version="brain.Event:2"))
        if first_step is not None:
            self._write(self._messages.Event(step=first_step, session_log={"status": "START"}))

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Writes scalars by tag, as "train/loss"."""
        from tensorboardX.summary import scalar

        for tag, value in scalars.items():
            self._write(self._messages.Event(step=step, summary=scalar(tag, value)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Any) -> None:
        from tensorboardX.record_writer import masked_crc32c

        event.wall_time = time.time()
        data = event.SerializeToString()
        size = struct.pack("<Q", len(data))
        checksums = (struct.pack("<I", masked_crc32c(part)) for part in (size, data))
        self._file.write(size + next(checksums) + data + next(checksums))
