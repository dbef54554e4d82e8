"""Which tokens continue a word, for whatever must keep words whole.

Shape legend: T length, V vocabulary.
"""

import numpy as np

from jaxnlp.data.tokenizer import Tokenizer


class Words:
    """Words of a tokenizer's texts: runs of letters, digits and underscores; any other character stands alone.

    A token continues the word before it if the text goes on with such a character where the token before ended
    with one. WordPiece's tokens say so themselves (`Tokenizer.continuation`).
    """

    def __init__(self, tokenizer: Tokenizer):
        pieces = tokenizer.pieces()
        self.special_V = np.asarray([piece is None for piece in pieces])
        mark = tokenizer.continuation
        first = _in_word if mark is None else lambda piece: piece.startswith(mark)
        last = (lambda piece: _in_word(piece[-1:])) if mark is None else lambda piece: True
        self._first_V = np.asarray([piece is not None and first(piece) for piece in pieces])
        self._last_V = np.asarray([piece is not None and last(piece) for piece in pieces])

    def continues(self, tokens_T: np.ndarray) -> np.ndarray:
        """True for each token that belongs to the word of the token before it, (T,)."""
        joined_T = np.zeros(len(tokens_T), bool)
        joined_T[1:] = self._first_V[tokens_T[1:]] & self._last_V[tokens_T[:-1]]
        return joined_T

    def spans(self, tokens_T: np.ndarray) -> list[np.ndarray]:
        """The places of each word's tokens, in order; every place is in one."""
        return np.split(np.arange(len(tokens_T)), np.flatnonzero(~self.continues(tokens_T))[1:])


def _in_word(text: bytes) -> bool:
    """Whether the first byte is of a word. One above 127 is of a character outside ASCII, nearly always a letter."""
    return text[:1].isalnum() or text[:1] == b"_" or text[:1] > b"\x7f"
