"""Sources of labelled records with named fields, from JSON lines, CSV, TSV and Parquet files."""

import abc
import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from jaxnlp.data.source import Record, Source
from jaxnlp.data.text import sources, text_files
from jaxnlp.errors import FieldError, UserError


class RecordSource(Source):
    """A source whose documents are the texts of its records. A subclass defines `records`."""

    has_records: ClassVar[bool] = True

    @abc.abstractmethod
    def records(self, split: str) -> Iterator[Record]: ...

    def documents(self, split: str) -> Iterator[str]:
        return texts(self.records(split))


@dataclasses.dataclass(kw_only=True)
class Records(RecordSource, sources.FileSource):
    """Files of records.

    The format follows from the file name: .jsonl and .json (one object per line), .csv and .tsv (with a header), each
    also compressed as .gz or .zst; .parquet.

    train, validation, test: comma-separated files, globs and folders (read recursively).
    holdout: fraction of the train records held out for each of validation and test if no files are given for it.
    group: the field whose hash decides the split that a record is held out for. Records with the same value, such as
        the questions about one text, stay together. "" hashes the full record.
    """

    train: str = ""
    validation: str = ""
    test: str = ""
    holdout: float = 0.05
    group: str = ""

    def check(self) -> None:
        if not self.train:
            raise FieldError("train", self.train, "expected files, globs or folders, for example 'reviews/*.jsonl'")
        sources.check_holdout(self.holdout)

    def records(self, split: str) -> Iterator[Record]:
        sources.check_split(split)
        own_files, empty = self.own_files(split), True
        for path in self.files(split):
            for record in read_records(path):
                if self.belongs(self._group(record), split):
                    empty = False
                    yield record
        if empty:
            remedy = "" if own_files else f"; set data.source.{split}, or use more records"
            raise UserError(f"data.source: the {split} split has no records in {own_files or self.train}{remedy}")

    def _group(self, record: Record) -> str:
        value = field(record, self.group, "data.source.group") if self.group else record.fields
        return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def texts(records: Iterable[Record]) -> Iterator[str]:
    """Yields a document for each record: its strings, nested ones included, joined by newlines."""
    for record in records:
        text = "\n".join(_texts(record.fields))
        if text:
            yield text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)


def with_results(fields: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the fields of a record and of `results`, such as its prediction.

    A field with the name of a result is renamed with the prefix "record_", so that neither is lost.
    """
    names, row = {*fields, *results}, {}
    for name, value in fields.items():
        new_name = name
        while name in results and new_name in names:
            new_name = f"record_{new_name}"
        names.add(new_name)
        row[new_name] = value
    return {**row, **results}


def field(record: Record, name: str, setting: str) -> Any:
    """The value of a record's field. Raises FieldError, naming the config field `setting`, if it is missing."""
    if name not in record.fields:
        raise FieldError(setting, name, f"{record.where} has no such field (it has: {', '.join(record.fields)})")
    return record.fields[name]


def text_field(record: Record, name: str, setting: str) -> str:
    """The value of a text field. Raises FieldError if it is missing, not a string, or blank."""
    value = field(record, name, setting)
    if not isinstance(value, str):
        raise FieldError(setting, name, f"{record.where} holds {type(value).__name__}; expected text")
    if not value.strip():
        raise FieldError(setting, name, f"{record.where} has an empty text; fill it in, or remove the record")
    return value


def read_records(path: pathlib.Path) -> Iterator[Record]:
    """Yields the records of one file. Raises UserError naming the file and, if known, the line."""
    kind = text_files.kind_of(path)
    if kind == ".parquet":
        yield from _read_parquet(path)
        return
    readers = {".jsonl": _read_jsonl, ".json": _read_jsonl, ".csv": _read_table, ".tsv": _read_table}
    if kind not in readers:
        raise UserError(f"{path}: not a file of records; expected an extension of {', '.join(readers)}, .parquet")
    with text_files.clear_errors(path), text_files.open_text(path) as lines:
        yield from readers[kind](path, lines)


def parse_json(line: str, where: str) -> Record:
    """Parses a line of JSON into a record. Raises UserError, naming `where`, if it is not a JSON object."""
    fields = text_files.json_line(line, where)
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected a JSON object, got {type(fields).__name__}")
    if "\\u" in line:
        text_files.check_surrogates(json.dumps(fields, ensure_ascii=False), where)
    return Record(where, fields)


def _read_jsonl(path: pathlib.Path, lines: Any) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield parse_json(line, f"{path}:{number}")


def _read_table(path: pathlib.Path, lines: Any) -> Iterator[Record]:
    if text_files.kind_of(path) == ".tsv":  # in TSV, quotation marks have no special meaning
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines, strict=True)
    try:
        names = next(rows, [])
        if len(set(names)) < len(names) or not all(names):
            raise UserError(
                f"{path}: the first line is not a header: {', '.join(names)[:80]}; expected unique column names"
            )
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise UserError(f"{path}:{rows.line_num}: has {len(row)} columns; the header has {len(names)}")
            yield Record(f"{path}:{rows.line_num}", dict(zip(names, row, strict=True)))
    except csv.Error as e:
        raise UserError(f"{path}:{rows.line_num}: not a valid table row ({e})") from None


def _read_parquet(path: pathlib.Path) -> Iterator[Record]:
    for number, fields in text_files.parquet_rows(path, text_files.open_parquet(path), None):
        yield Record(f"{path}, row {number}", fields)
