"""Base class of sources, which read documents or records and assign them to splits."""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from jaxnlp.errors import FieldError


@dataclasses.dataclass(frozen=True)
class Record:
    """One labelled example as read. where: its location, for messages, as "train.jsonl:7". fields: values by name."""

    where: str
    fields: dict[str, Any]


@dataclasses.dataclass(kw_only=True)
class Source(abc.ABC):
    """Config of a corpus.

    A source of text defines `documents` and `fingerprint`. A source of records also defines `records`; its documents
    are the texts of its records, on which a tokenizer can be trained.

    has_records: whether the source defines `records`.
    """

    has_records: ClassVar[bool] = False

    @abc.abstractmethod
    def documents(self, split: str) -> Iterator[str]:
        """Yields the texts of "train", "validation" or "test", in a fixed order."""

    def records(self, split: str) -> Iterator[Record]:
        """Yields the records of a split, in a fixed order. Raises FieldError for a source of plain text."""
        expected = "contains text, no records; use a source of records, for example Records(train='x.jsonl')"
        raise FieldError("data.source", type(self).__name__, expected)

    @abc.abstractmethod
    def fingerprint(self, split: str) -> str:
        """A short hash that identifies the documents of the split, used in cache keys."""
