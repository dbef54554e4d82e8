"""Input texts of classification and regression tasks.

  Single      one text (is this review good?)
  Pair        an ordered pair (does the premise entail the hypothesis?)
  Unordered   an unordered pair (do they mean the same?): a decoder reads both orders and sums its hidden states

Radford et al. 2018, section 3.3.
"""

import abc
import dataclasses

from jaxnlp.data.records import text_field
from jaxnlp.data.source import Record
from jaxnlp.data.tasks.layout import Layout


@dataclasses.dataclass(kw_only=True)
class Inputs(abc.ABC):
    """Selects the texts of a record and their order in each sequence."""

    @abc.abstractmethod
    def texts(self, record: Record) -> list[str]: ...

    @abc.abstractmethod
    def orders(self, layout: Layout) -> list[tuple[int, ...]]:
        """For each sequence, the indices of its texts, in order."""

    @property
    def text_field(self) -> str | None:
        """The field of the text, or None if there are several texts."""
        return None


@dataclasses.dataclass(kw_only=True)
class Single(Inputs):
    """One text. text: the field that holds it."""

    text: str = "text"

    def texts(self, record: Record) -> list[str]:
        return [text_field(record, self.text, "data.task.inputs.text")]

    def orders(self, layout: Layout) -> list[tuple[int, ...]]:
        return [(0,)]

    @property
    def text_field(self) -> str | None:
        return self.text


@dataclasses.dataclass(kw_only=True)
class Pair(Inputs):
    """An ordered pair of texts. first, second: the fields that hold them."""

    first: str = "premise"
    second: str = "hypothesis"

    def texts(self, record: Record) -> list[str]:
        fields = {"first": self.first, "second": self.second}
        return [text_field(record, name, f"data.task.inputs.{setting}") for setting, name in fields.items()]

    def orders(self, layout: Layout) -> list[tuple[int, ...]]:
        return [(0, 1)]


@dataclasses.dataclass(kw_only=True)
class Unordered(Pair):
    """An unordered pair of texts. first, second: the fields that hold them."""

    first: str = "first"
    second: str = "second"

    def orders(self, layout: Layout) -> list[tuple[int, ...]]:
        return [(0, 1), (1, 0)] if layout.both_orders else [(0, 1)]
