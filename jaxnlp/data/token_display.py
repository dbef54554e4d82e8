"""Tokens as a person reads them in a figure."""

from collections.abc import Iterable

from jaxnlp.data.tokenizer import SEPARATOR, SEPARATORS, Tokenizer

VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}
SPECIALS = (*SEPARATORS, "[CLS]", "[MASK]", "[PAD]", "[UNK]", "<s>", "<pad>", "<unk>", "<mask>")


def token_labels(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The text of each token, with its white space visible.

    A space is ␣, the end of a line ↵ and a tab ⇥. A byte that is part of a character, or one that cannot be shown, is
    its number, as <E4>; a special token is its name, or <special 7> where that is not one of the usual names.
    """
    pieces, names = tokenizer.pieces(), special_names(tokenizer)
    found = []
    for i in map(int, ids):
        piece = pieces[i]
        found.append(names.get(i, f"<special {i}>") if piece is None else _visible(piece))
    return found


def special_names(tokenizer: Tokenizer) -> dict[int, str]:
    """The ids of those special tokens that have one of the usual names, and of the separator."""
    names = {tokenizer.separator: SEPARATOR}
    for name in SPECIALS:
        if tokenizer.has_special(name):
            names[tokenizer.special(name)] = name
    return names


def _visible(piece: bytes) -> str:
    return "".join(map(_character, piece.decode(errors="surrogateescape")))


def _character(c: str) -> str:
    if c in VISIBLE or c.isprintable():
        return VISIBLE.get(c, c)
    code = ord(c) - 0xDC00 if 0xDC80 <= ord(c) <= 0xDCFF else ord(c)  # how Python holds a byte of no whole character
    return f"<{code:02X}>" if code < 256 else f"<U+{code:04X}>"
