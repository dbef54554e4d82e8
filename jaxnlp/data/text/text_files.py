"""Reads documents from files: plain text, JSON lines and Parquet, also compressed as .gz or .zst."""

import contextlib
import csv
import gzip
import io
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import zstandard

from jaxnlp.errors import FieldError, UserError, reading, reason

ZSTD_WINDOW = 1 << 31  # bytes: the largest that the format's tools write (`zstd --long=31`); the default is 1 << 27
THRIFT = (1 << 31) - 1  # bytes of a string and entries of a list in a Parquet file's metadata
BATCH_BYTES = 64 << 20  # of a batch of Parquet rows; a column of a batch has at most 2 GiB


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
    """The format suffix of a file name in lower case, without compression suffixes, as ".jsonl"; "" if it has none."""
    suffixes = [s for s in map(str.lower, path.suffixes) if s not in (".gz", ".zst")]
    return suffixes[-1] if suffixes else ""


@contextlib.contextmanager
def clear_errors(path: pathlib.Path) -> Iterator[None]:
    """Converts exceptions raised while reading a text file into a one-line UserError, and lifts Python's limits."""
    lift_limits()
    try:
        yield
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte 0x{e.object[e.start]:02x}); expected a text file") from None
    except Exception as e:
        with reading(path, "cannot be read"):
            raise e


def lift_limits() -> None:
    """Lets this process read CSV fields and integers of any length. Python's limits protect servers from attackers."""
    csv.field_size_limit(sys.maxsize)
    sys.set_int_max_str_digits(0)


def open_text(path: pathlib.Path) -> Any:
    encoding = "utf-8-sig"  # UTF-8, with or without a byte order mark
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    if suffix == ".zst":
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
                self._frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
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
    except RecursionError:
        raise UserError(f"{where}: its JSON is nested too deeply; expected at most some hundred levels") from None
    except ValueError as e:
        raise UserError(f"{where}: JSON that cannot be read ({reason(e)}); expected one object per line") from None


def check_surrogates(text: str, where: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{where}: contains an unpaired surrogate, which is not valid text; correct or remove the line")


def _read_parquet(path: pathlib.Path, field: str) -> Iterator[str]:
    file = open_parquet(path)
    if field not in file.schema_arrow.names:
        raise FieldError("data.source.field", field, f"{path} has the columns {', '.join(file.schema_arrow.names)}")
    for _, row in parquet_rows(path, file, [field]):
        text = row[field]
        if text is not None and not isinstance(text, str):
            raise FieldError("data.source.field", field, f"{path} holds {type(text).__name__}, expected text")
        if text:
            yield text


def parquet_rows(path: pathlib.Path, file: Any, columns: list[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the rows of a Parquet file, numbered from 1. Raises UserError naming the file and, if known, the row.

    Writers do not check that strings are UTF-8, so that a row may not be a value of Python.
    """
    first = 1
    for batch in parquet_batches(path, file, columns):
        try:
            rows = batch.to_pylist()
        except Exception:
            rows = [_parquet_row(f"{path}, row {first + i}", batch.slice(i, 1)) for i in range(batch.num_rows)]
        yield from enumerate(rows, first)
        first += batch.num_rows


def _parquet_row(where: str, row: Any) -> dict[str, Any]:
    """A row whose batch has a value that is none of Python. Times and dates that Python lacks become text."""
    import pyarrow as pa

    try:
        return row.to_pylist()[0]
    except Exception:
        with reading(where, "cannot be read; correct or remove the row"):
            columns = []
            for column in row.columns:
                is_duration = pa.types.is_duration(column.type)
                kind = pa.int64() if is_duration else pa.string() if pa.types.is_temporal(column.type) else column.type
                columns.append(column.cast(kind))
            return pa.RecordBatch.from_arrays(columns, names=row.schema.names).to_pylist()[0]


def open_parquet(path: pathlib.Path) -> Any:
    import pyarrow.parquet as parquet

    with reading(path, "not a Parquet file"):
        return parquet.ParquetFile(path, thrift_string_size_limit=THRIFT, thrift_container_size_limit=THRIFT)


def parquet_batches(path: pathlib.Path, file: Any, columns: list[str] | None) -> Iterator[Any]:
    groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
    row_bytes = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
    with reading(path, "damaged"):
        yield from file.iter_batches(columns=columns, batch_size=int(np.clip(BATCH_BYTES / (row_bytes + 1), 1, 1024)))
