"""Streaming decoder of tokens to text, with stop strings."""

from collections.abc import Callable, Sequence

from jaxnlp.data.joined_text import common_length
from jaxnlp.errors import FieldError

CONTEXT = 16  # preceding tokens decoded with the new ones, as decoding can depend on them
UNFINISHED = "\ufffd"  # the decoding of an invalid or incomplete character


class TextStream:
    """Decodes the tokens of one row incrementally.

    Returned text is final: the bytes of an incomplete character are held back, and so is a suffix that may become a
    stop string.

    Args:
        decode: ids to text. before: ids that precede the new ones; their text is not returned.
        prompt: the ids of the text that is not returned, if its last tokens join the first new ones and so are not
            those of `before`; None: `before`.
        stop: strings that end the text where they first appear; they are not part of the text.

    Raises:
        FieldError: `stop` is a string, or contains an empty one.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        before: Sequence[int] = (),
        stop: Sequence[str] = (),
        prompt: Sequence[int] | None = None,
    ):
        if isinstance(stop, str) or not all(isinstance(word, str) and word for word in stop):
            raise FieldError("stop", stop, "expected a list of non-empty strings")
        self._decode, self._stop = decode, tuple(stop)
        first = max(0, len(before) - CONTEXT)
        self._before = list(before[first:])
        self._prompt_text = decode(self._before if prompt is None else list(prompt[first:]))
        self._ids: list[int] = []
        self._returned = ""
        self._from = 0  # stop strings are searched from here
        self.ended_at: int | None = None  # number of ids up to the one that completed a stop string

    def force(self, ids: Sequence[int]) -> str:
        """As `push`, but stop strings in the text of these ids are ignored."""
        self._ids += ids
        text = self._text(len(self._ids))
        self._from = len(text)
        return self._return(text)

    def push(self, ids: Sequence[int]) -> str:
        """Adds ids and returns the newly final text. Ids after a stop string are ignored."""
        if self.ended_at is not None:
            return ""
        num_ids = len(self._ids)
        self._ids += ids
        # After each id: a byte of an incomplete character may hide a stop string (`tokenizers` decodes bytes in a row
        # together).
        for count in range(num_ids + 1, len(self._ids) + 1) if self._stop else ():
            text = self._text(count)
            if (at := self._find(text)) is not None:
                self.ended_at = count
                return self._return(text[:at])
        text = self._text(len(self._ids))
        return self._return(text[: len(text) - self._held_back(text)])

    def close(self) -> str:
        """The text still held back; empty if a stop string ended the text."""
        return "" if self.ended_at is not None else self._return(self._all(len(self._ids)))

    @property
    def text(self) -> str:
        """All text returned so far."""
        return self._returned

    def _all(self, count: int) -> str:
        """The text of the first `count` ids."""
        text = self._decode([*self._before, *self._ids[:count]])
        return text[common_length(self._prompt_text, text) :]

    def _text(self, count: int) -> str:
        return self._all(count).rstrip(UNFINISHED)

    def _find(self, text: str) -> int | None:
        places = [at for at in (text.find(word, self._from) for word in self._stop) if at >= 0]
        return min(places, default=None)

    def _held_back(self, text: str) -> int:
        """Number of characters at the end that may be the start of a stop string."""
        text = text[self._from :]
        max_length = max(map(len, self._stop), default=1) - 1
        sizes = range(min(max_length, len(text)), 0, -1)
        return next((n for n in sizes if any(word.startswith(text[-n:]) for word in self._stop)), 0)

    def _return(self, text: str) -> str:
        new = text[len(self._returned) :]
        self._returned += new
        return new
