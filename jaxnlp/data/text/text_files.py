"""Reads documents from files: plain text, JSON lines and Parquet, also compressed as .gz or .zst."""

import contextlib
import glob
import gzip
import io
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import zstandard

from jaxnlp.errors import FieldError, UserError


def expand(field: str, patterns: str) -> list[pathlib.Path]:
    """Lists the files named by comma-separated paths, globs and folders, sorted within each pattern.

    Raises:
        FieldError: a pattern matches no file, a file is empty, or a path cannot be read.
    """
    files: list[pathlib.Path] = []
    for pattern in patterns.split(","):
        path = pathlib.Path(pattern.strip()).expanduser()
        if not _readable(path):
            raise FieldError(field, str(path), "cannot be read; check its permissions and those of its folder")
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.is_file())
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(pathlib.Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if not matches:
            raise FieldError(field, pattern.strip(), "no such file, and no file matches the pattern; check the path")
        files += matches
    for path in files:
        if path.stat().st_size == 0:
            raise FieldError(field, str(path), "the file is empty; remove it")
    return files


def _readable(path: pathlib.Path) -> bool:
    """Whether permissions allow reading `path`. True also for a path that does not exist."""
    try:
        return not path.is_dir() or os.access(path, os.R_OK | os.X_OK)
    except PermissionError:
        return False


def read_file(path: pathlib.Path, field: str, document: str) -> Iterator[str]:
    """Yields the documents of one file. Raises UserError naming the file and, if known, the line."""
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _read_parquet(path, field)
        return
    with clear_errors(path), open_text(path) as lines:
        if kind in (".jsonl", ".json"):
            yield from _read_jsonl(path, lines, field)
        else:
            yield from _read_text(path, lines, document)


def kind_of(path: pathlib.Path) -> str:
    """The format suffix of a file name without compression suffixes, as ".jsonl"; "" if it has none."""
    suffixes = [s for s in path.suffixes if s not in (".gz", ".zst")]
    return suffixes[-1] if suffixes else ""


@contextlib.contextmanager
def clear_errors(path: pathlib.Path) -> Iterator[None]:
    """Converts exceptions raised while reading a text file into a one-line UserError."""
    try:
        yield
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte 0x{e.object[e.start]:02x}); expected a text file") from None
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from None


def open_text(path: pathlib.Path) -> Any:
    encoding = "utf-8-sig"  # UTF-8, with or without a byte order mark
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    if path.suffix == ".zst":
        return io.TextIOWrapper(io.BufferedReader(_Zstandard(path)), encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


class _Zstandard(io.RawIOBase):
    """Decompresses a zstandard file. Raises EOFError for a truncated frame, which zstandard's own reader ignores."""

    def __init__(self, path: pathlib.Path):
        self._file, self._frame, self._ready = path.open("rb"), None, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = data or self._file.read(1 << 16)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it ends in the middle of a zstandard frame; the file may be truncated")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = self._frame.decompress(data)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_text(path: pathlib.Path, lines: Any, document: str) -> Iterator[str]:
    for text in _split_text(lines, document):
        if "\x00" in text:
            raise UserError(f"{path}: contains a NUL byte; expected a text file")
        yield text


def _split_text(lines: Any, document: str) -> Iterator[str]:
    if document == "file":
        yield lines.read()
    elif document == "line":
        for line in lines:
            if line.strip():
                yield line.rstrip("\r\n")
    else:
        paragraph: list[str] = []
        for line in lines:
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph)
                paragraph = []
        if paragraph:
            yield "".join(paragraph)


def _read_jsonl(path: pathlib.Path, lines: Any, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = json_line(line, f"{path}:{number}")
        if not isinstance(record, dict) or field not in record:
            content = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise FieldError("data.source.field", field, f"{path}:{number} has no such field (it has: {content})")
        if not isinstance(record[field], str):
            raise FieldError(
                "data.source.field", field, f"{path}:{number} holds {type(record[field]).__name__}, expected text"
            )
        if "\\u" in line:
            check_surrogates(record[field], f"{path}:{number}")
        if record[field]:
            yield record[field]


def json_line(line: str, where: str) -> Any:
    """The value of a line of JSON. Raises UserError naming its location `where`."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as e:
        raise UserError(f"{where}: invalid JSON ({e.msg}); expected one object per line") from None


def check_surrogates(text: str, where: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{where}: contains an unpaired surrogate, which is not valid text; correct or remove the line")


def _read_parquet(path: pathlib.Path, field: str) -> Iterator[str]:
    file = open_parquet(path)
    if field not in file.schema_arrow.names:
        raise FieldError("data.source.field", field, f"{path} has the columns {', '.join(file.schema_arrow.names)}")
    for batch in parquet_batches(path, file, [field]):
        for text in batch.column(0).to_pylist():
            if text is not None and not isinstance(text, str):
                raise FieldError("data.source.field", field, f"{path} holds {type(text).__name__}, expected text")
            if text:
                yield text


def open_parquet(path: pathlib.Path) -> Any:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as e:
        raise UserError(f"{path}: not a Parquet file ({e})") from None


def parquet_batches(path: pathlib.Path, file: Any, columns: list[str] | None) -> Iterator[Any]:
    import pyarrow

    try:
        yield from file.iter_batches(columns=columns, batch_size=1024)
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path}: damaged ({' '.join(str(e).split())[:200]})") from None
