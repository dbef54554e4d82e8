"""One writer per run: an operating-system lock on its folder, released when the process ends for any reason."""

import fcntl
import os
import pathlib
import socket
from typing import IO

from jaxnlp.errors import UserError, check_text


def lock(workdir: pathlib.Path) -> IO[str]:
    """Takes the lock. Keep the returned file open to hold it. Raises UserError naming the process that holds it."""
    file = (workdir / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise UserError(
            f"--workdir={workdir}: another process is training here ({holder}); stop it or choose another folder"
        ) from None
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def open_workdir(workdir: pathlib.Path) -> IO[str]:
    """Creates the folder and takes its lock. Raises UserError if either fails."""
    check_text("--workdir", str(workdir))  # TensorStore cannot write to other paths
    if "://" in str(workdir) or ":/" in str(workdir):
        raise UserError(
            f"--workdir={workdir}: expected a local path; mount the bucket (as with gcsfuse) and give its folder"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        return lock(workdir)
    except OSError as e:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({e.strerror}); choose a folder you can write to"
        ) from None
