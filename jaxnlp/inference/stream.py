"""Text as it comes: decoded bit by bit, ended at stop strings."""

import itertools
from collections.abc import Callable, Sequence

from jaxnlp.errors import FieldError

CONTEXT = 16  # tokens before the new ones that are decoded with them: what stands before changes how some decode
UNFINISHED = "\ufffd"  # what bytes decode to that make no character, or not yet


class TextStream:
    """The text of one row.

    What it gives out is final: the bytes of a character that is not whole yet are held back, and so is an ending that
    may become a stop string.

    Args:
        decode: ids to text. before: ids that the new ones follow, whose text is not given out.
        stop: strings that end the text where they appear; they are not part of it.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = (), stop: Sequence[str] = ()):
        if isinstance(stop, str) or not all(isinstance(word, str) and word for word in stop):
            raise FieldError("stop", stop, "expected a list of strings, none of them empty")
        self._decode, self._stop = decode, tuple(stop)
        self._before = list(before[-CONTEXT:])
        self._ids: list[int] = []
        self._given = ""
        self._from = 0  # where stop strings count
        self.ended_at: int | None = None  # ids up to the one that completed a stop string

    def force(self, ids: Sequence[int]) -> str:
        """As `push`, of ids in whose text stop strings do not count."""
        self._ids += ids
        text = self._text(len(self._ids))
        self._from = len(text)
        return self._give(text)

    def push(self, ids: Sequence[int]) -> str:
        """More ids: the text that they make final. None are taken once a stop string has ended it."""
        if self.ended_at is not None:
            return ""
        known = len(self._ids)
        self._ids += ids
        text = self._text(len(self._ids))
        if self._find(text) is not None:
            for count in range(known + 1, len(self._ids) + 1):
                at = self._find(self._text(count))
                if at is not None:
                    self.ended_at = count
                    return self._give(self._text(count)[:at])
        return self._give(text[: len(text) - self._held_back(text)])

    def close(self) -> str:
        """The rest, of a text that no stop string ended."""
        return "" if self.ended_at is not None else self._give(self._all(len(self._ids)))

    @property
    def text(self) -> str:
        """All that was given out."""
        return self._given

    def _all(self, count: int) -> str:
        """The text of the first `count` ids."""
        before, whole = self._decode(self._before), self._decode([*self._before, *self._ids[:count]])
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False))
        return whole[sum(1 for _ in same) :]

    def _text(self, count: int) -> str:
        return self._all(count).rstrip(UNFINISHED)

    def _find(self, text: str) -> int | None:
        found = [at for at in (text.find(word, self._from) for word in self._stop) if at >= 0]
        return min(found, default=None)

    def _held_back(self, text: str) -> int:
        """Characters at the end with which a stop string may begin."""
        text = text[self._from :]
        longest = max(map(len, self._stop), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((n for n in sizes if any(word.startswith(text[-n:]) for word in self._stop)), 0)

    def _give(self, text: str) -> str:
        new = text[len(self._given) :]
        self._given += new
        return new
