"""Paths as users write them: `local` is the only place that turns the text of a flag or a field into a path."""

import os
import pathlib

from jaxnlp.errors import UserError

CACHE = "~/.cache/jaxnlp"


def local(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path with a leading `~` or `~user` expanded, since no shell expands it in --flag=~/x or in a config.

    A file in the working folder whose name begins with `~` is meant if it exists.

    Raises:
        UserError: the user is unknown, or has no home folder.
    """
    text, path = os.fspath(path), pathlib.Path(path)
    if not text.startswith("~"):
        return pathlib.Path.cwd() / path if path.parts and path.parts[0].startswith("~") else path  # ./~x
    try:
        return path.expanduser()
    except RuntimeError:
        if os.path.lexists(path.parts[0]):
            return path
        name = path.parts[0]
        reason = "this user has no home folder; set $HOME" if name == "~" else "no such user"
        raise UserError(f"{path}: {reason}, or write ./{path} for a file with this name") from None


def cache_folder(setting: str = "") -> pathlib.Path:
    """The folder for caches: `setting`, or $JAXNLP_CACHE, or ~/.cache/jaxnlp."""
    return local(setting or os.environ.get("JAXNLP_CACHE") or CACHE)
