"""How the texts of an example become one sequence of tokens, for an encoder or for a decoder.

  EncoderLayout   [CLS] a [SEP]              [CLS] a [SEP] b [SEP], types 0 up to the first [SEP] and 1 after it
  RobertaLayout   <s> a </s>                 <s> a </s> </s> b </s>, all of type 0
  DecoderLayout   <start> a <extract>        <start> a <delimiter> b <extract>, all of type 0

Devlin et al. 2019, arXiv:1810.04805, section 4 and figure 4; Liu et al. 2019, arXiv:1907.11692; Radford et al. 2018
("Improving language understanding by generative pre-training"), section 3.3 and figure 1.
Shape legend: T length.
"""

import dataclasses
from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError

Ids = Many[int]


@dataclasses.dataclass(frozen=True)
class Sequence:
    """tokens, types: (T,) int32. extract: the place whose state stands for the sequence.
    begins: the place of the first token of each text."""

    tokens: np.ndarray
    types: np.ndarray
    extract: int
    begins: tuple[int, ...]


@dataclasses.dataclass(kw_only=True)
class EncoderLayout:
    """BERT's. cls, sep: names of the tokenizer's special tokens."""

    cls: str = "[CLS]"
    sep: str = "[SEP]"

    both_orders = False
    language_model = False

    def specials(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return tuple(special(tokenizer, self, name) for name in ("cls", "sep"))

    def overhead(self, num_texts: int) -> int:
        """Special tokens in a sequence of so many texts."""
        return 1 + num_texts

    def sequence(self, texts: Many[Ids], specials: tuple[int, ...]) -> Sequence:
        cls, sep = specials
        parts = [[cls, *texts[0], sep], *([*text, sep] for text in texts[1:])]
        return _join(parts, [1] + [0] * (len(texts) - 1), extract=0, kinds=range(len(parts)))


@dataclasses.dataclass(kw_only=True)
class RobertaLayout:
    """RoBERTa's: two separators between texts, one type. cls, sep: names of the tokenizer's special tokens."""

    cls: str = "<s>"
    sep: str = "</s>"

    both_orders = False
    language_model = False

    def specials(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return tuple(special(tokenizer, self, name) for name in ("cls", "sep"))

    def overhead(self, num_texts: int) -> int:
        return 2 * num_texts

    def sequence(self, texts: Many[Ids], specials: tuple[int, ...]) -> Sequence:
        cls, sep = specials
        parts = [[cls, *texts[0], sep], *([sep, *text, sep] for text in texts[1:])]
        return _join(parts, [1] * len(texts), extract=0, kinds=[0] * len(parts))


@dataclasses.dataclass(kw_only=True)
class DecoderLayout:
    """GPT's. The model reads the answer off the last token, the only one that has seen them all; texts without an
    order are read in both, and the language model's own loss can be kept on.

    start, delimiter, extract: names of the tokenizer's special tokens.
    """

    start: str = "<start>"
    delimiter: str = "<delimiter>"
    extract: str = "<extract>"

    both_orders = True
    language_model = True

    def specials(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return tuple(special(tokenizer, self, name) for name in ("start", "delimiter", "extract"))

    def overhead(self, num_texts: int) -> int:
        return 1 + num_texts

    def sequence(self, texts: Many[Ids], specials: tuple[int, ...]) -> Sequence:
        start, delimiter, extract = specials
        parts = [[start, *texts[0]], *([delimiter, *text] for text in texts[1:]), [extract]]
        length = sum(map(len, parts))
        found = _join(parts, [1] * len(parts), extract=length - 1, kinds=[0] * len(parts))
        return dataclasses.replace(found, begins=found.begins[: len(texts)])


def special(tokenizer: Tokenizer, layout: Any, field: str) -> int:
    """The id of the token that a layout's field names."""
    try:
        return tokenizer.special(getattr(layout, field))
    except FieldError as e:
        raise FieldError(f"data.examples.layout.{field}", e.value, e.expected) from None


def _join(parts: Many[Ids], before: Many[int], extract: int, kinds: Many[int]) -> Sequence:
    """One sequence of parts. before: special tokens at the front of each; kinds: the type of each."""
    sizes = [len(part) for part in parts]
    starts = np.cumsum([0, *sizes[:-1]])
    tokens = np.asarray([token for part in parts for token in part], np.int32)
    begins = tuple(int(start) + skip for start, skip in zip(starts, before, strict=True))
    return Sequence(tokens, np.repeat(np.asarray(kinds, np.int32), sizes), extract, begins)


def shorten(texts: Many[Ids], room: int) -> list[Ids]:
    """The texts cut to `room` tokens in all: the longest loses its last token, again and again, until they fit
    (of equally long ones the last goes first, as in BERT)."""
    sizes = [len(text) for text in texts]
    for _ in range(sum(sizes) - room):
        longest = max(sizes)
        last = max(i for i, size in enumerate(sizes) if size == longest)
        sizes[last] -= 1
    return [text[:size] for text, size in zip(texts, sizes, strict=True)]
