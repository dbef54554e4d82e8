"""Texts that are encoded in parts: a prompt and its forced beginning, the words around a mask, the words of a sentence.

A tokenizer may put a space before each text (Llama 2, Mistral, T5), and tokens may cross the boundary between two
parts. So the parts of one text are encoded together.
"""

import collections
import itertools
import unicodedata
from collections.abc import Sequence
from typing import Any

Ids = list[int]
ANCHOR = "x"


def encode_joined(tokenizer: Any, rows: Sequence[Sequence[str]], after_special: bool = False) -> list[list[Ids]]:
    """The ids of the parts of each text. Joined, they are the encoding of the joined parts.

    A token that crosses the end of a part belongs to the next part. lm-evaluation-harness also encodes a context and
    its continuation together. Parts are encoded apart where the joined text loses characters that they keep apart, as
    words that a vocabulary of words has apart but not joined.

    Args:
        tokenizer: any object with `encode_batch` and `decode`.
        rows: for each text, its parts.
        after_special: whether the texts follow a special token (`Tokenizer.encode_after_special`).
    """
    starts = [list(itertools.accumulate(parts)) for parts in rows]  # the text up to the end of each part
    texts = list(dict.fromkeys(text for row in [*starts, *rows] for text in row))
    encode = tokenizer.encode_after_special if after_special else tokenizer.encode_batch
    encoded = dict(zip(texts, encode(texts), strict=True)) if texts else {}
    joined = []
    for row, parts in zip(starts, rows, strict=True):
        ids = [encoded[text] for text in row]
        apart = [encoded[part] for part in parts]
        keeps = all(_keeps(tokenizer, start, ids[-1]) for start in ids[:-1]) or not _loses(tokenizer, row, ids, apart)
        joined.append(_cut(ids) if keeps else apart)
    return joined


def _keeps(tokenizer: Any, start: Ids, full: Ids) -> bool:
    """Whether the text of `full` begins with that of `start`."""
    return full[: len(start)] == start or tokenizer.decode(full).startswith(tokenizer.decode(start))


def _loses(tokenizer: Any, starts: Sequence[str], ids: Sequence[Ids], apart: Sequence[Ids]) -> bool:
    """Whether the joined text, the last of `starts`, loses more characters than its parts do apart."""
    text = _letters(starts[-1])
    change = lambda decoded: sum((text - decoded).values()) + sum((decoded - text).values())  # or becomes "<unk>"
    joined = _letters(tokenizer.decode(ids[-1]))
    return change(joined) > change(_letters("".join(map(tokenizer.decode, apart))))


def _letters(text: str) -> collections.Counter[str]:
    """The characters of a text and their counts, without what tokenizers change: white space, case, composition."""
    return collections.Counter("".join(unicodedata.normalize("NFKD", text.casefold()).split()))


def _cut(starts: Sequence[Ids]) -> list[Ids]:
    """Cuts the last encoding where the encodings of its beginnings end."""
    if not starts:
        return []
    ends = [len(starts[-1])]
    for ids in reversed(starts[:-1]):
        ends.insert(0, min(ends[0], common_length(ids, starts[-1])))
    return [starts[-1][begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def common_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def encode_between(tokenizer: Any, parts: Sequence[str], special_ids: Sequence[int]) -> Ids:
    """The ids of a text with special tokens between its parts: parts[0], special_ids[0], parts[1], ...

    As the library `tokenizers` encodes a text that contains special tokens.
    """
    (ids,) = tokenizer.encode_batch([parts[0]])
    for special_id, part in zip(special_ids, tokenizer.encode_after_special(list(parts[1:])), strict=True):
        ids = [*ids, special_id, *part]
    return ids


def encode_following(tokenizer: Any, text: str) -> Ids:
    """The ids of a text that follows another one: without the space that a tokenizer may put before each text."""
    first, apart = tokenizer.encode_batch([ANCHOR, text])
    ((anchor, following),) = encode_joined(tokenizer, [(ANCHOR, text)])
    is_joined = tokenizer.decode([*first, *apart]) == ANCHOR + text
    return following if not is_joined and tokenizer.decode([*anchor, *following]) == ANCHOR + text else apart
