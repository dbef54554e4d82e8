"""Sources of text: the Python standard library, files, and TensorFlow Datasets."""

import dataclasses
import hashlib
import pathlib
import sys
import sysconfig
from collections.abc import Iterator
from typing import Any

from jaxnlp.data.source import Source
from jaxnlp.data.text.file_lists import expand
from jaxnlp.data.text.text_files import read_file
from jaxnlp.errors import FieldError, UserError
from jaxnlp.paths import local

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
        paths = [p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts)]
        return sorted((p for p in paths if p.is_file()), key=lambda p: p.relative_to(root).as_posix())

    def documents(self, split: str) -> Iterator[str]:
        check_split(split)
        for path in self.files():
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue  # some library files intentionally have other encodings
            if text.strip() and split_of(text, self.holdout) == split:
                text = docstrings(text) if self.part == "docstrings" else text
                if text:
                    yield text

    def fingerprint(self, split: str) -> str:
        return fingerprint([f"{sys.version} {self}", split, *(f"{p} {p.stat().st_size}" for p in self.files())])


def docstrings(source: str) -> str:
    """The docstrings of a Python module, separated by blank lines; "" if it has none."""
    import ast
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library contains deprecated escapes
        tree = ast.parse(source)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in texts if text)


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
        assigned: set[pathlib.Path] = set()
        for other_split in ("validation", "test"):
            if self.own_files(other_split):
                assigned |= {p.resolve() for p in expand(f"data.source.{other_split}", self.own_files(other_split))}
        files = [p for p in expand("data.source.train", self.train) if p.resolve() not in assigned]
        if not files:
            raise FieldError(
                "data.source.train",
                self.train,
                "all these files are also listed for validation or test; expected at least one other file",
            )
        return files

    def fingerprint(self, split: str) -> str:
        stats = ((p, p.stat()) for p in self.files(split))
        return fingerprint([str(self), split, *(f"{p} {s.st_size} {s.st_mtime_ns}" for p, s in stats)])

    def belongs(self, text: str, split: str) -> bool:
        """Whether a document read for `split` belongs to it. All do if the split has files of its own."""
        if split != "train" and self.own_files(split):
            return True
        place = split_of(text, self.holdout)
        if split == "train":  # documents held out for a split that has its own files stay in train
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
            raise FieldError("train", self.train, "expected files, globs or folders, for example 'corpus/*.jsonl.gz'")
        if self.document not in ("file", "paragraph", "line"):
            raise FieldError("document", self.document, "expected 'file', 'paragraph' or 'line'")
        check_holdout(self.holdout)

    def documents(self, split: str) -> Iterator[str]:
        check_split(split)
        own_files, empty = self.own_files(split), True
        for path in self.files(split):
            for text in read_file(path, self.field, self.document):
                if self.belongs(text, split):
                    empty = False
                    yield text
        if empty and not own_files:
            raise UserError(
                f"data.source: the {split} split is empty, as no document of {self.train} was held out for it; "
                f"set data.source.{split}, or split text files with data.source.document='paragraph'"
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
            raise FieldError("name", self.name, "expected a TFDS name, for example 'lm1b'")

    def _open(self, split: str) -> Any:
        import tensorflow_datasets as tfds

        options: dict[str, Any] = {"data_dir": str(local(self.data_dir))} if self.data_dir else {}
        try:
            builder: Any = tfds.builder(self.name, **options)
        except Exception as e:
            reason = str(e).strip().splitlines()[0]
            raise FieldError("data.source.name", self.name, f"TFDS cannot load it ({reason})") from None
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
        return fingerprint([str(self), split, data.dataset_info.full_name, str(len(data))])


def check_holdout(holdout: float) -> None:
    if not 0 < holdout < 0.5:
        raise FieldError("holdout", holdout, "expected a fraction in (0, 0.5), for example 0.05")


def fingerprint(parts: list[str]) -> str:
    """A short hash of texts."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
