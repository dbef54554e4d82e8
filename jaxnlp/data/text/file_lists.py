"""The data files that paths, globs and folders name.

A folder holds more than data: hidden files and folders (`.git`, `.ipynb_checkpoints`), what Spark and Hadoop write
beside their files (`_SUCCESS`, `_temporary`), descriptions that come with a download (README.md, dataset_infos.json),
lists of checksums (SHA256SUMS), and copies that an editor or a download left. These are left out unless they are named,
and a note says so. The rules for names that begin with `.` and `_` are those of Hadoop, Spark and pyarrow, except that
source code is read (`__init__.py`); the list of descriptions contains that of Hugging Face's datasets.
"""

import fnmatch
import functools
import glob
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

from jaxnlp.errors import FieldError
from jaxnlp.paths import local

DESCRIPTIONS = {
    *("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "dummy_data.zip"),
    *("croissant.json", "datapackage.json", "dataset-metadata.json", "thumbs.db", "desktop.ini", "lost+found"),
}
TITLES = {
    *("readme", "license", "licence", "copying", "notice", "citation", "changelog", "contributing", "authors"),
    "code_of_conduct",
}
TITLE_ENDS = ("", ".md", ".txt", ".rst", ".html", ".cff", ".bib", ".markdown", ".mdx", ".htm", ".adoc", ".org", ".pdf")
CHECKSUMS = re.compile(r"((sha\d*|md5|b2|check)[-_]?sums?|shasums\d+)(\.(txt|md|asc|sig|gpg)?)*")
COMPRESSED = {".gz", ".zst", ".bz2", ".xz", ".lz4", ".lzo", ".snappy", ".deflate", ".zip"}
RECORDS = {".parquet", ".orc", ".avro", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xml", ".arrow", ".feather"}
NOT_SOURCE = RECORDS | {
    *(".txt", ".text", ".log", ".db", ".bin", ".idx", ".npy", ".npz", ".pkl", ".h5", ".pdf", ".png", ".jpg", ".gif"),
    *(".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".o", ".a", ".class", ".jar"),
}
"""Suffixes that a file whose name begins with `_` has without being source code: data, tables, compiled code."""
COPIES = ("*~", "#*#", "*.bak", "*.orig", "*.swp", "*.tmp", "*.part", "*.partial", "*.incomplete", "*.crdownload")
SIDE_FILES = ("*.crc", "*.md5", "*.sha1", "*.sha256", "*.sha512", "*.lock")
NUM_LISTED = 6


def expand(field: str, patterns: str) -> list[pathlib.Path]:
    """Lists the files named by comma-separated paths, globs and folders, sorted within each pattern.

    In folders and globs, files that are not data are left out, and a note on stderr names them. A glob that is itself
    such a name, as `_part*`, `.cache/*`, `README*` or `*.bak`, reads them.

    Raises:
        FieldError: a pattern matches no file, a file is empty or a broken link, or a path cannot be read.
    """
    files: list[pathlib.Path] = []
    for pattern in patterns.split(","):
        files += _matches(field, pattern.strip())
    for path in files:
        if not path.exists():
            raise FieldError(field, str(path), "is a link to a missing file; restore the file, or remove the link")
        if path.stat().st_size == 0:
            raise FieldError(field, str(path), "the file is empty; remove it")
    return files


def is_data(name: str, is_folder: bool = False) -> bool:
    """Whether a file or folder with this name is read when its folder is."""
    name = name.lower()
    if name.startswith("."):
        return False
    if name.startswith("_") and "=" not in name and (is_folder or not _is_source(name)):  # `_column=1` is a partition
        return False
    title, end = os.path.splitext(name)
    if name in DESCRIPTIONS or (title in TITLES and end in TITLE_ENDS):
        return False
    if not is_folder and (CHECKSUMS.fullmatch(name) or _is_readme(title, end)):
        return False
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in (*COPIES, *SIDE_FILES))


def _is_source(name: str) -> bool:
    """Whether a name has the suffix of source code: letters, and no format that Spark or a compiler writes."""
    title, end = os.path.splitext(name)
    while end in COMPRESSED:
        title, end = os.path.splitext(title)
    return re.fullmatch(r"\.[a-z][a-z0-9+]*", end) is not None and end not in NOT_SOURCE


def _is_readme(title: str, end: str) -> bool:
    """Whether a file is a README, also in one of several languages, as README_de.md or README.zh-CN. No table is."""
    return title.startswith("readme") and (end in TITLE_ENDS or (title == "readme" and end not in RECORDS | COMPRESSED))


def _matches(field: str, pattern: str) -> list[pathlib.Path]:
    path = local(pattern)
    if not _readable(path):
        raise FieldError(field, str(path), "cannot be read; check its permissions and those of its folder")
    left_out: list[str] = []
    if path.is_dir():
        files = sorted(_walk(field, path, path, left_out))
    elif path.is_file():
        files = [path]
    else:
        matches = (pathlib.Path(p) for p in glob.glob(str(path), recursive=True, include_hidden=True))
        files = sorted(_named(path, (p for p in matches if not p.is_dir()), left_out))
    if left_out:
        listed = ", ".join(sorted(left_out)[:NUM_LISTED])
        more = f" and {len(left_out) - NUM_LISTED} more" if len(left_out) > NUM_LISTED else ""
        if not files:
            expected = f"matches only {listed}{more}, which are left out unless named; name a file to read it"
            raise FieldError(field, pattern, expected)
        _note(f"{field}={pattern}: left out {listed}{more} (hidden, or by its name not data); name a file to read it")
    if not files:
        raise FieldError(field, pattern, "no such file, and no file matches the pattern; check the path")
    return files


def _walk(field: str, root: pathlib.Path, folder: pathlib.Path, left_out: list[str]) -> Iterator[pathlib.Path]:
    """The data files below a folder. Links to folders are followed, except to a folder that the link lies in."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as e:
        raise FieldError(field, str(folder), f"cannot be read ({e.strerror}); check its permissions") from None
    for entry in entries:
        path = folder / entry.name
        if not is_data(entry.name, entry.is_dir()):
            left_out.append(f"{path.relative_to(root)}{os.sep if entry.is_dir() else ''}")
        elif entry.is_dir():
            if not (entry.is_symlink() and folder.resolve().is_relative_to(path.resolve())):
                yield from _walk(field, root, path, left_out)
        elif entry.is_file() or entry.is_symlink():
            yield path


def _named(pattern: pathlib.Path, paths: Iterable[pathlib.Path], left_out: list[str]) -> Iterator[pathlib.Path]:
    """The paths that a glob matches, without those that are not data, unless the glob names them."""
    start = next(i for i, part in enumerate(pattern.parts) if i == len(pattern.parts) - 1 or glob.has_magic(part))
    names = [part for part, is_folder in _parts(pattern, start) if not is_data(_example(part), is_folder)]
    is_named = lambda part: any(fnmatch.fnmatchcase(part, name) for name in names)
    for path in paths:
        parts = path.parts[start:]
        if all(is_data(part, is_folder) or is_named(part) for part, is_folder in _parts(path, start)):
            yield path
        else:
            left_out.append(os.path.join(*parts))


def _parts(path: pathlib.Path, start: int) -> Iterator[tuple[str, bool]]:
    """The parts of a file's path from `start` on, and whether each is a folder."""
    return ((part, i < len(path.parts) - 1) for i, part in enumerate(path.parts) if i >= start)


def _example(glob_part: str) -> str:
    """A name that a part of a glob matches, as "_part" for `_part*` and "x.bak" for `*.bak`."""
    return re.sub(r"[*?]", "", re.sub(r"^[*?]+", "x", glob_part))


@functools.cache  # once for each text, as a run lists its files several times
def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _readable(path: pathlib.Path) -> bool:
    """Whether permissions allow reading `path`. True also for a path that does not exist."""
    try:
        return not path.is_dir() or os.access(path, os.R_OK | os.X_OK)
    except PermissionError:
        return False
