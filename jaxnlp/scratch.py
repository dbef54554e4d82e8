"""Temporary folders beside what they become, and files that are complete or absent.

A killed process cannot remove its temporary files, and their age does not show whether it still runs. So each temporary
folder holds a file with an operating-system lock, which ends with its process. `scratch` and `sweep` remove the folders
whose lock is free.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

from jaxnlp.errors import UserError

PREFIX, LOCK, OLD = ".tmp-", "lock", "old"
UNCHANGED = "existing files are unchanged; free disk space, or choose another folder"


@contextlib.contextmanager
def scratch(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder in `folder`, which is created if missing. It is removed at the end of the block, or by the next
    `scratch` or `sweep` of the folder if the process is killed.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    path, lock = _create(folder)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        lock.close()


def sweep(folder: pathlib.Path) -> list[pathlib.Path]:
    """Removes the temporary folders of processes that have ended. Returns their paths."""
    removed = []
    for path in folder.glob(f"{PREFIX}*") if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # another process removes it, or the folder is read-only
            lock = _try_lock(path)
            if lock is not None:
                with lock:
                    shutil.rmtree(path)
                removed.append(path)
    return removed


@contextlib.contextmanager
def replacing(path: pathlib.Path, remedy: str = UNCHANGED) -> Iterator[pathlib.Path]:
    """Yields a temporary path. At the end of the block its file is moved to `path`, when it is complete on disk.

    A pipe or a device, as /dev/stdout, is written directly.

    Raises:
        UserError: the file cannot be written, for example because the disk is full.
    """
    with write_errors(path, remedy):
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            yield path
            return
        path = path.resolve()  # a link keeps its place, and the file that it names is replaced
        with scratch(path.parent) as temporary:
            yield temporary / path.name
            sync(temporary / path.name)
            (temporary / path.name).replace(path)


@contextlib.contextmanager
def write_errors(path: object, remedy: str = "free disk space, or choose another folder") -> Iterator[None]:
    """Converts the OSError of a write into a UserError of one line that names `path`."""
    try:
        yield
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); {remedy}") from None


def move_files(source: pathlib.Path, folder: pathlib.Path, *, last: str, replaced: Iterable[str] = ()) -> None:
    """Moves the complete files of a temporary folder to `folder`. If that fails, the old files are put back.

    Args:
        last: the file without which the folder counts as empty. It is removed first and moved last, so that a process
            that is killed leaves no mixture of old and new files that can be read.
        replaced: names of old files to remove; those that are missing, or are folders, are left out.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    sync(source)
    names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    names = [*(name for name in names if name not in (LOCK, last)), last]
    old = [name for name in dict.fromkeys((last, *replaced, *names)) if (folder / name).is_file()]
    with _set_aside(folder, old, names):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).replace(folder / name)


@contextlib.contextmanager
def _set_aside(folder: pathlib.Path, old: Sequence[str], new: Sequence[str]) -> Iterator[None]:
    """Removes old files for a block that writes new ones. If it fails, removes the new ones and puts the old back."""
    with scratch(folder) as aside:
        moved = []
        try:
            for name in old:
                (aside / OLD / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).replace(aside / OLD / name)
                moved.append(name)
            yield
        except BaseException:
            for name in new if len(moved) == len(old) else ():
                if (folder / name).is_file():
                    (folder / name).unlink()
            for name in reversed(moved):
                (aside / OLD / name).replace(folder / name)
            raise


def sync(path: pathlib.Path) -> None:
    """Writes a file, or the files in a folder, through to the disk. Raises OSError if there is no room."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _create(folder: pathlib.Path) -> tuple[pathlib.Path, IO[bytes]]:
    while True:
        path = folder / f"{PREFIX}{uuid.uuid4().hex}"
        path.mkdir()
        try:
            lock = _try_lock(path)
        except FileNotFoundError:  # another process swept it before it was locked
            continue
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        if lock is not None:
            return path, lock


def _try_lock(path: pathlib.Path) -> IO[bytes] | None:
    """The lock of a temporary folder; None if a running process holds it. Raises OSError if the folder has gone."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((path / LOCK).open("ab"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path / LOCK)):
            return None  # another process removed this lock and its folder, and a third made the folder's lock anew
        stack.pop_all()
        return file
