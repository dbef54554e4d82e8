"""What a text, or two, are to a model: the input of classification and regression.

  Single      one text (is this review good?)
  Pair        two with an order (does the premise entail the hypothesis?)
  Unordered   two without one (do they mean the same?): a decoder reads them in both orders and adds up what it sees

Radford et al. 2018, section 3.3.
"""

import dataclasses
from typing import Any

from jaxnlp.data.records import Record, text_field


@dataclasses.dataclass(kw_only=True)
class Single:
    """text: the field that holds it."""

    text: str = "text"

    def texts(self, record: Record) -> list[str]:
        return [text_field(record, self.text, "data.examples.inputs.text")]

    def orders(self, layout: Any) -> list[tuple[int, ...]]:
        """The texts of each sequence."""
        return [(0,)]


@dataclasses.dataclass(kw_only=True)
class Pair:
    """first, second: the fields that hold them."""

    first: str = "premise"
    second: str = "hypothesis"

    def texts(self, record: Record) -> list[str]:
        return two_texts(self, record)

    def orders(self, layout: Any) -> list[tuple[int, ...]]:
        return [(0, 1)]


@dataclasses.dataclass(kw_only=True)
class Unordered:
    """first, second: the fields that hold them."""

    first: str = "first"
    second: str = "second"

    def texts(self, record: Record) -> list[str]:
        return two_texts(self, record)

    def orders(self, layout: Any) -> list[tuple[int, ...]]:
        return [(0, 1), (1, 0)] if layout.both_orders else [(0, 1)]


def two_texts(inputs: Any, record: Record) -> list[str]:
    return [text_field(record, getattr(inputs, name), f"data.examples.inputs.{name}") for name in ("first", "second")]
