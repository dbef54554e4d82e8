"""Paths as users write them: `local` is the only place that turns the text of a flag or a field into a path."""

import functools
import os
import pathlib
import stat
import sys
import tempfile

from jaxnlp.errors import UserError

CACHE = "~/.cache/jaxnlp"


def local(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path with a leading `~` or `~user` expanded, since no shell expands it in --flag=~/x or in a config.

    A file in the working folder whose name begins with `~` is meant if it exists, or if it is written as `./~x`.

    Raises:
        UserError: the user is unknown, or has no home folder.
    """
    return pathlib.Path(expanded(path))


def expanded(path: str | os.PathLike[str]) -> str:
    """`local` as text, which is unchanged if there is nothing to expand: for a field that may be a hub id."""
    text = os.fspath(path)
    if text.startswith("./~"):  # pathlib would drop the ./
        return os.path.abspath(text)
    if not text.startswith("~"):
        return text
    try:
        return str(pathlib.Path(text).expanduser())
    except RuntimeError:
        name = pathlib.Path(text).parts[0]
        if os.path.lexists(name):
            return os.path.abspath(text)
        reason = "this user has no home folder; set $HOME" if name == "~" else "no such user"
        raise UserError(f"{text}: {reason}, or write ./{text} for a file with this name") from None


def cache_folder(setting: str = "") -> pathlib.Path:
    """The folder for caches: `setting`, or $JAXNLP_CACHE, or ~/.cache/jaxnlp.

    A user without a home folder, or with one that cannot be written, has a folder among the temporary files instead. A
    note on stderr says so.
    """
    chosen = setting or os.environ.get("JAXNLP_CACHE")
    return local(chosen) if chosen else _default_cache(os.environ.get("HOME"))


def writable(folder: pathlib.Path) -> bool:
    """Whether files can be written to a folder, which may not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


@functools.cache
def _default_cache(home: str | None) -> pathlib.Path:
    """home: $HOME, so that a change of it is noticed."""
    try:
        folder = local(CACHE)
    except UserError:
        missing = "this user has no home folder"
    else:
        if writable(folder):
            return folder
        missing = f"{folder} cannot be written"
    own = _temporary_folder()
    print(f"note: {missing}; caches are in {own}; set $JAXNLP_CACHE to choose another folder", file=sys.stderr)
    return own


def _temporary_folder() -> pathlib.Path:
    """A folder among the temporary files that only this user can write: the same in every process, if possible."""
    try:
        path = pathlib.Path(tempfile.gettempdir()) / f"jaxnlp-{os.getuid()}"
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
        return path if is_own else pathlib.Path(tempfile.mkdtemp(prefix="jaxnlp-"))
    except OSError as e:
        raise UserError(f"caches: no folder can be written ({e.strerror}); set $JAXNLP_CACHE to one") from None
