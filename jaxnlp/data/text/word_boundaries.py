"""Word boundaries in token sequences, for code that must not split words.

Shape legend: T length, V vocabulary.
"""

import numpy as np

from jaxnlp.data.tokenizer import Tokenizer


class Words:
    """Splits tokens into words.

    A word is a run of letters, digits and underscores; any other character is a word of its own. A token continues the
    previous word if it begins with a word character and the previous token ends with one. WordPiece tokens mark
    continuation themselves (`Tokenizer.continuation`), and tokens of a vocabulary of words continue none.

    special_V: whether each id of the vocabulary is a special token.
    """

    def __init__(self, tokenizer: Tokenizer):
        pieces = tokenizer.token_bytes()
        self.special_V = np.asarray([piece is None for piece in pieces])
        mark = tokenizer.continuation
        first = _in_word if mark is None else lambda piece: piece.startswith(mark)
        last = (lambda piece: _in_word(piece[-1:])) if mark is None else lambda piece: True
        if tokenizer.tokens_are_words:
            first = lambda piece: False
        self._first_V = np.asarray([piece is not None and first(piece) for piece in pieces])
        self._last_V = np.asarray([piece is not None and last(piece) for piece in pieces])

    def continues(self, tokens_T: np.ndarray) -> np.ndarray:
        """Whether each token continues the word of the previous token, (T,) bool."""
        joined_T = np.zeros(len(tokens_T), bool)
        joined_T[1:] = self._first_V[tokens_T[1:]] & self._last_V[tokens_T[:-1]]
        return joined_T

    def spans(self, tokens_T: np.ndarray) -> list[np.ndarray]:
        """The positions of each word's tokens, in order. The spans partition the sequence."""
        return np.split(np.arange(len(tokens_T)), np.flatnonzero(~self.continues(tokens_T))[1:])


def _in_word(text: bytes) -> bool:
    """Whether the first byte belongs to a word. Bytes above 127 do, since non-ASCII characters are mostly letters."""
    return text[:1].isalnum() or text[:1] == b"_" or text[:1] > b"\x7f"
