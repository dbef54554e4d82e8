"""The base class of sources: where documents or records come from, and which split each belongs to."""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from jaxnlp.errors import FieldError


@dataclasses.dataclass(frozen=True)
class Record:
    """One labelled example as it was read. where: its place, for messages, as "train.jsonl:7". fields: by name."""

    where: str
    fields: dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class Source(abc.ABC):
    """A config object that names a corpus. A source of text defines `documents` and `fingerprint`; a source of records
    also defines `records`, and its documents are the records' texts, for whatever trains a tokenizer on them.

    has_records: whether it defines `records`.
    """

    has_records: ClassVar[bool] = False

    @abc.abstractmethod
    def documents(self, split: str) -> Iterator[str]:
        """The texts of "train", "validation" or "test", in a fixed order."""

    def records(self, split: str) -> Iterator[Record]:
        """The records of a split, in a fixed order. Raises FieldError for a source of plain text."""
        expected = "holds text, without records; use a source of records, as Records(train='x.jsonl')"
        raise FieldError("data.source", type(self).__name__, expected)

    @abc.abstractmethod
    def fingerprint(self, split: str) -> str:
        """A short hash of exactly these documents, for caches."""
