"""How the texts of an example become one sequence of tokens, for an encoder or for a decoder.

  EncoderLayout   [CLS] a [SEP]              [CLS] a [SEP] b [SEP], types 0 up to the first [SEP] and 1 after it
  RobertaLayout   <s> a </s>                 <s> a </s> </s> b </s>, all of type 0
  DecoderLayout   <start> a <extract>        <start> a <delimiter> b <extract>, all of type 0
  Template        any of these, with words and places for a prompt's vectors before and after the texts

Devlin et al. 2019, arXiv:1810.04805, section 4 and figure 4; Liu et al. 2019, arXiv:1907.11692; Radford et al. 2018
("Improving language understanding by generative pre-training"), section 3.3 and figure 1.
Shape legend: T length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError

Ids = Sequence[int]
TEXTS, PLACE = "{text}", "<prompt>"


@dataclasses.dataclass(frozen=True)
class TokenSequence:
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

    def sequence(self, texts: Sequence[Ids], specials: tuple[int, ...]) -> TokenSequence:
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

    def sequence(self, texts: Sequence[Ids], specials: tuple[int, ...]) -> TokenSequence:
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

    def sequence(self, texts: Sequence[Ids], specials: tuple[int, ...]) -> TokenSequence:
        start, delimiter, extract = specials
        parts = [[start, *texts[0]], *([delimiter, *text] for text in texts[1:]), [extract]]
        length = sum(map(len, parts))
        found = _join(parts, [1] * len(parts), extract=length - 1, kinds=[0] * len(parts))
        return dataclasses.replace(found, begins=found.begins[: len(texts)])


@dataclasses.dataclass(kw_only=True)
class Template:
    """Another layout with a template around its texts, as P-tuning has it (Liu et al. 2021, arXiv:2103.10385).

    text: as "<prompt><prompt>{text} It is about<prompt>", where {text} stands for the texts as `layout` has them; what
        is before and after goes within its special tokens, and is never cut.
    place: in it, where a vector of `peft.prompt.PTuning` or `Prompt` stands, and the name of the special token that
        stands there in the data.
    """

    text: str = "<prompt>{text}"
    place: str = PLACE
    layout: Any = dataclasses.field(default_factory=EncoderLayout)

    language_model = False  # places are no words to predict

    def check(self) -> None:
        if not self.place:
            raise FieldError("place", self.place, f"expected the name of a special token, as {PLACE!r}")
        if self.text.count(TEXTS) != 1:
            raise FieldError("text", self.text, f"expected {TEXTS} in it once, where the texts stand")

    @property
    def both_orders(self) -> bool:
        return self.layout.both_orders

    @property
    def num_places(self) -> int:
        return self.text.count(self.place)

    def place_id(self, tokenizer: Tokenizer) -> int:
        return special(tokenizer, self, "place")

    def specials(self, tokenizer: Tokenizer) -> tuple[Any, ...]:
        """(ids before the texts, ids after them, those of the layout)."""
        try:
            within = self.layout.specials(tokenizer)
        except FieldError as e:
            raise FieldError(e.field.replace(".layout.", ".layout.layout."), e.value, e.expected) from None
        before, after = self.text.split(TEXTS)
        return self._ids(before, tokenizer), self._ids(after, tokenizer), within

    def _ids(self, text: str, tokenizer: Tokenizer) -> list[int]:
        first, *rest = tokenizer.encode_batch(text.split(self.place))
        return [*first, *(i for words in rest for i in (self.place_id(tokenizer), *words))]

    def sequence(self, texts: Sequence[Ids], specials: tuple[Any, ...]) -> TokenSequence:
        before, after, within = specials
        parts = [list(text) for text in texts]
        parts[0] = [*before, *parts[0]]
        parts[-1] = [*parts[-1], *after]
        found = self.layout.sequence(parts, within)
        first, *rest = found.begins
        return dataclasses.replace(found, begins=(first + len(before), *rest))


def overhead(layout: Any, num_texts: int, specials: tuple[Any, ...]) -> int:
    """Tokens in a sequence of so many texts that are none of theirs."""
    return len(layout.sequence([()] * num_texts, specials).tokens)


def special(tokenizer: Tokenizer, layout: Any, field: str) -> int:
    """The id of the token that a layout's field names."""
    try:
        return tokenizer.special(getattr(layout, field))
    except FieldError as e:
        raise FieldError(f"data.examples.layout.{field}", e.value, e.expected) from None


def _join(parts: Sequence[Ids], before: Sequence[int], extract: int, kinds: Sequence[int]) -> TokenSequence:
    """One sequence of parts. before: special tokens at the front of each; kinds: the type of each."""
    sizes = [len(part) for part in parts]
    starts = np.cumsum([0, *sizes[:-1]])
    tokens = np.asarray([token for part in parts for token in part], np.int32)
    begins = tuple(int(start) + skip for start, skip in zip(starts, before, strict=True))
    return TokenSequence(tokens, np.repeat(np.asarray(kinds, np.int32), sizes), extract, begins)


def shorten(texts: Sequence[Ids], room: int) -> list[Ids]:
    """The texts cut to `room` tokens in all: the longest loses its last token, again and again, until they fit
    (of equally long ones the last goes first, as in BERT)."""
    sizes = [len(text) for text in texts]
    for _ in range(sum(sizes) - room):
        longest = max(sizes)
        last = max(i for i, size in enumerate(sizes) if size == longest)
        sizes[last] -= 1
    return [text[:size] for text, size in zip(texts, sizes, strict=True)]
