"""Sources of text: the Python standard library, files, and TensorFlow Datasets."""

import contextlib
import dataclasses
import glob
import gzip
import hashlib
import io
import json
import os
import pathlib
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from typing import Any

import zstandard

from jaxnlp.data.source import Source
from jaxnlp.errors import FieldError, UserError

SPLITS = ("train", "validation", "test")


def split_of(text: str, holdout: float) -> str:
    """The split of a document, from a hash of its content, so that equal documents share a split.

    holdout: the fraction of the documents in each of validation and test.
    """
    place = int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()) / 2**64
    if place < holdout:
        return "validation"
    return "test" if place < 2 * holdout else "train"


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise FieldError("split", split, f"expected one of {', '.join(SPLITS)}")


@dataclasses.dataclass(kw_only=True)
class PythonStdlib(Source):
    """The text of the Python standard library on this machine. It is real text and needs no download.

    A document is a source file, or with `part="docstrings"` the docstrings of a file. Files are read in the order of
    their paths and assigned to splits by content, so that equal files share a split. Tests and installed packages are
    left out.

    part: "source" or "docstrings".
    holdout: fraction of the files held out for each of validation and test.
    """

    part: str = "source"
    holdout: float = 0.05

    def check(self) -> None:
        if self.part not in ("source", "docstrings"):
            raise FieldError("part", self.part, "expected 'source' or 'docstrings'")
        check_holdout(self.holdout)

    def files(self) -> list[pathlib.Path]:
        root = pathlib.Path(sysconfig.get_paths()["stdlib"])
        skip = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
        found = [p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts)]
        return sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(root).as_posix())

    def documents(self, split: str) -> Iterator[str]:
        check_split(split)
        for path in self.files():
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue  # a handful of library files are in other encodings on purpose
            if text.strip() and split_of(text, self.holdout) == split:
                text = docstrings(text) if self.part == "docstrings" else text
                if text:
                    yield text

    def fingerprint(self, split: str) -> str:
        return digest([f"{sys.version} {self}", split, *(f"{p} {p.stat().st_size}" for p in self.files())])


def docstrings(source: str) -> str:
    """The docstrings of a Python module, separated by blank lines; "" if it has none."""
    import ast
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library parses its own deprecated escapes
        tree = ast.parse(source)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if text)


class FileSource(Source):
    """Base class of sources that read files.

    It is not a dataclass: subclasses declare these fields, since cache fingerprints depend on the order of the fields.

    train, validation, test: comma-separated files, globs and folders (read recursively).
    holdout: fraction of the train documents held out for each of validation and test if no files are given for it. The
        documents are chosen by a hash of their content.
    """

    train: str
    validation: str
    test: str
    holdout: float

    def own_files(self, split: str) -> str:
        """The setting that lists the files of the split; "" if it has none of its own."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def files(self, split: str) -> list[pathlib.Path]:
        """The files a split is read from, in a fixed order. Files assigned to another split are excluded from train.

        Raises:
            FieldError: a pattern matches no file, or no file is left for train.
        """
        if split != "train" and self.own_files(split):
            return expand(f"data.source.{split}", self.own_files(split))
        taken: set[pathlib.Path] = set()
        for other in ("validation", "test"):
            if self.own_files(other):
                taken |= {p.resolve() for p in expand(f"data.source.{other}", self.own_files(other))}
        files = [p for p in expand("data.source.train", self.train) if p.resolve() not in taken]
        if not files:
            raise FieldError("data.source.train", self.train, "every file here is given to validation or test as well")
        return files

    def fingerprint(self, split: str) -> str:
        stats = ((p, p.stat()) for p in self.files(split))
        return digest([str(self), split, *(f"{p} {s.st_size} {s.st_mtime_ns}" for p, s in stats)])

    def belongs(self, text: str, split: str) -> bool:
        """Whether a document read for `split` belongs to it. All do if the split has files of its own."""
        if split != "train" and self.own_files(split):
            return True
        place = split_of(text, self.holdout)
        if split == "train":  # what is held out for a split with files of its own stays in train
            return place == "train" or bool(self.own_files(place))
        return place == split


@dataclasses.dataclass(kw_only=True)
class Files(FileSource):
    """Text, JSON lines and Parquet files.

    The format follows from the file name: .jsonl and .json, also compressed as .gz or .zst; .parquet. Every other file
    is UTF-8 text, also compressed as .gz or .zst.

    train, validation, test: comma-separated files, globs and folders (read recursively).
    field: the field or column that holds the text, for JSON lines and Parquet.
    document: the unit of a text file that is one document: "file", "paragraph" (separated by blank lines) or "line".
    holdout: fraction of the train documents held out for each of validation and test if no files are given for it. The
        documents are chosen by a hash of their content.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    field: str = "text"
    document: str = "file"
    holdout: float = 0.05

    def check(self) -> None:
        if not self.train:
            raise FieldError("train", self.train, "expected files, globs or folders, as 'corpus/*.jsonl.gz'")
        if self.document not in ("file", "paragraph", "line"):
            raise FieldError("document", self.document, "expected 'file', 'paragraph' or 'line'")
        check_holdout(self.holdout)

    def documents(self, split: str) -> Iterator[str]:
        check_split(split)
        own, empty = self.own_files(split), True
        for path in self.files(split):
            for text in read_file(path, self.field, self.document):
                if self.belongs(text, split):
                    empty = False
                    yield text
        if empty and not own:
            raise UserError(
                f"data.source: the {split} split is empty: none of the documents in {self.train} falls into it; "
                f"give data.source.{split}, or split text files with data.source.document='paragraph'"
            )


@dataclasses.dataclass(kw_only=True)
class TFDS(Source):
    """A dataset of TensorFlow Datasets, read from its ArrayRecord files without TensorFlow.

    name: as "lm1b" or "wikipedia/20230601.en:1.0.0".
    train, validation, test: TFDS split expressions, as "train[:99%]".
    field: the feature that holds the text.
    data_dir: the folder in which the dataset was prepared; "" is the default of TFDS.
    """

    name: str = ""
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    field: str = "text"
    data_dir: str = ""

    def check(self) -> None:
        if not self.name:
            raise FieldError("name", self.name, "expected a TFDS name, as 'lm1b'")

    def _open(self, split: str) -> Any:
        import tensorflow_datasets as tfds

        where: dict[str, Any] = {"data_dir": self.data_dir} if self.data_dir else {}
        try:
            builder: Any = tfds.builder(self.name, **where)
        except Exception as e:
            reason = str(e).strip().splitlines()[0]
            raise FieldError("data.source.name", self.name, f"TFDS cannot find it ({reason})") from None
        expression = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        try:
            return builder.as_data_source(split=expression)
        except Exception as e:
            folder = f", data_dir={self.data_dir!r}" if self.data_dir else ""
            if not builder.is_prepared():
                raise UserError(
                    f"data.source.name={self.name!r}: not prepared in {builder.data_dir}; prepare it with: "
                    f'python -c "import tensorflow_datasets as tfds; tfds.builder({self.name!r}{folder}, '
                    "file_format='array_record').download_and_prepare()\""
                ) from None
            reason = str(e).strip().splitlines()[0]
            raise FieldError(f"data.source.{split}", expression, f"cannot be read: {reason}") from None

    def documents(self, split: str) -> Iterator[str]:
        check_split(split)
        for record in self._open(split):
            if self.field not in record:
                raise FieldError("data.source.field", self.field, f"{self.name} has the features {', '.join(record)}")
            text = record[self.field]
            yield text.decode() if isinstance(text, bytes) else str(text)

    def fingerprint(self, split: str) -> str:
        check_split(split)
        data = self._open(split)
        return digest([str(self), split, data.dataset_info.full_name, str(len(data))])


def expand(field: str, patterns: str) -> list[pathlib.Path]:
    """Lists the files named by comma-separated paths, globs and folders, sorted within each pattern.

    Raises:
        FieldError: a pattern matches no file, a file is empty, or a path cannot be read.
    """
    found: list[pathlib.Path] = []
    for pattern in patterns.split(","):
        path = pathlib.Path(pattern.strip()).expanduser()
        if not _readable(path):
            raise FieldError(field, str(path), "cannot be read; check the permissions of it and of its folder")
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.is_file())
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(pathlib.Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if not matches:
            raise FieldError(field, pattern.strip(), "no such file, and no file matches; check the path")
        found += matches
    for path in found:
        if path.stat().st_size == 0:
            raise FieldError(field, str(path), "the file is empty; remove it or leave it out")
    return found


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
        raise UserError(f"{path}: not UTF-8 text (byte 0x{e.object[e.start]:02x}); is it a binary file?") from None
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from None


def open_text(path: pathlib.Path) -> Any:
    encoding = "utf-8-sig"  # UTF-8, with or without the mark that some editors begin a file with
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
                    raise EOFError("it ends in the middle of a zstandard frame; is it cut short?")
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
            raise UserError(f"{path}: holds a NUL byte; is it a binary file?")
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
            has = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise FieldError("data.source.field", field, f"{path}:{number} has no such field (it has: {has})")
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
        raise UserError(f"{where}: not a JSON line ({e.msg}); expected one object a line") from None


def check_surrogates(text: str, where: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise UserError(f"{where}: holds half a surrogate pair, which is no text; mend or remove the line")


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


def check_holdout(holdout: float) -> None:
    if not 0 < holdout < 0.5:
        raise FieldError("holdout", holdout, "expected a share in (0, 0.5), as 0.05")


def digest(parts: list[str]) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
