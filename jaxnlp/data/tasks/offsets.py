"""Character offsets of tokens in their text."""

import dataclasses

import numpy as np

from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The tokens of a text. Token t covers the characters starts[t] to stops[t] (exclusive); both are (T,) int64.

    A token that covers part of a character counts as covering all of it.
    """

    ids: list[int]
    starts: np.ndarray
    stops: np.ndarray


class Offsets:
    """Tokenizes with offsets. Raises UserError if the tokenizer changes the text, so that offsets are unknown."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._pieces = tokenizer.token_bytes() if tokenizer.encode_spans([]) is None else None

    def __call__(self, texts: list[str]) -> list[Pieces]:
        encoded = self._tokenizer.encode_spans(texts)
        if encoded is not None:
            return [Pieces(ids, *_columns(spans)) for ids, spans in encoded]
        return [self._by_bytes(text, ids) for text, ids in zip(texts, self._tokenizer.encode_batch(texts), strict=True)]

    def _by_bytes(self, text: str, ids: list[int]) -> Pieces:
        """Computes offsets from the byte lengths of the pieces, whose concatenation is the text."""
        assert self._pieces is not None
        pieces = [self._pieces[i] or b"" for i in ids]
        data = text.encode()
        if b"".join(pieces) != data:
            raise UserError(
                f"data.tokenizer: {type(self._tokenizer).__name__} changes the text {text[:40]!r}, so the character "
                "offsets of its tokens are unknown; use another tokenizer"
            )
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        begins = np.concatenate([[0], ends])[:-1]
        # Index of the character that contains byte i: number of characters that start at or before it, minus one.
        character = np.cumsum(np.frombuffer(data, np.uint8) & 0xC0 != 0x80) - 1
        if not ids:
            return Pieces(ids, begins, ends)
        return Pieces(ids, character[begins], character[ends - 1] + 1)


def word_pieces(tokenizer: Tokenizer, rows: list[list[str]], joiner: str) -> list[list[list[int]]]:
    """The tokens of each word of each row. Joined, they are the encoding of the row's words, joined by `joiner`.

    A joiner belongs to the word after it, and a token to the word in which it begins.

    Raises:
        UserError: joined words have other tokens than words apart, and the tokenizer cannot say where they are.
    """
    parts = [[joiner * (i > 0) + word for i, word in enumerate(words)] for words in rows]
    apart = iter(tokenizer.encode_batch([part for row in parts for part in row]))
    pieces = [[next(apart) for _ in row] for row in parts]
    texts = ["".join(row) for row in parts]
    joined = tokenizer.encode_batch(texts)
    others = [k for k, words in enumerate(pieces) if [i for ids in words for i in ids] != joined[k]]
    for k, tokens in zip(others, Offsets(tokenizer)([texts[k] for k in others]) if others else (), strict=True):
        ends = np.cumsum([len(part) for part in parts[k]])
        word_T = np.minimum(np.searchsorted(ends, tokens.starts, side="right"), len(ends) - 1)
        pieces[k] = [[tokens.ids[t] for t in np.flatnonzero(word_T == word)] for word in range(len(ends))]
    return pieces


def _columns(spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    columns = np.asarray(spans, np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]
