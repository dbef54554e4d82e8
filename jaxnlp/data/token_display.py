"""Readable labels of tokens, for figures and reports."""

from collections.abc import Iterable

from jaxnlp.data.tokenizer import EOS_TOKEN, EOS_TOKENS, Tokenizer

VISIBLE = {" ": "␣", "\n": "↵", "\t": "⇥"}
SPECIALS = (*EOS_TOKENS, "[CLS]", "[MASK]", "[PAD]", "[UNK]", "<s>", "<pad>", "<unk>", "<mask>")


def token_labels(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The text of each token, with white space made visible.

    A space is shown as ␣, a line end as ↵ and a tab as ⇥. A byte that is part of a character, or an unprintable
    character, is shown as its code, as <E4>. A special token is shown by its name, or as <special 7> if it has none of
    the usual names.
    """
    pieces, names = tokenizer.token_bytes(), special_names(tokenizer)
    labels = []
    for i in map(int, ids):
        piece = pieces[i]
        labels.append(names.get(i, f"<special {i}>") if piece is None else _visible(piece))
    return labels


def special_names(tokenizer: Tokenizer) -> dict[int, str]:
    """Maps the id of the end-of-text token, and of each special token with one of the usual names, to its name."""
    names = {tokenizer.eos_id: EOS_TOKEN}
    for name in SPECIALS:
        if tokenizer.has_special(name):
            names[tokenizer.special_id(name)] = name
    return names


def _visible(piece: bytes) -> str:
    return "".join(map(_character, piece.decode(errors="surrogateescape")))


def _character(c: str) -> str:
    if c in VISIBLE or c.isprintable():
        return VISIBLE.get(c, c)
    code = (
        ord(c) - 0xDC00 if 0xDC80 <= ord(c) <= 0xDCFF else ord(c)
    )  # surrogateescape maps an undecodable byte to this range
    return f"<{code:02X}>" if code < 256 else f"<U+{code:04X}>"
