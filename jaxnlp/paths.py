"""Paths as users write them: `local` is the only place that turns the text of a flag or a field into a path."""

import os
import pathlib

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
    """The folder for caches: `setting`, or $JAXNLP_CACHE, or ~/.cache/jaxnlp."""
    return local(setting or os.environ.get("JAXNLP_CACHE") or CACHE)
