"""Layouts, which join the texts of an example into one token sequence for an encoder or a decoder.

  EncoderLayout   [CLS] a [SEP]              [CLS] a [SEP] b [SEP], type 0 up to the first [SEP], 1 after it
  RobertaLayout   <s> a </s>                 <s> a </s> </s> b </s>, all of type 0
  DecoderLayout   <start> a <extract>        <start> a <delimiter> b <extract>, all of type 0
  Template        any of these, with words and prompt vectors before and after the texts

Devlin et al. 2019, arXiv:1810.04805, section 4 and figure 4; Liu et al. 2019, arXiv:1907.11692; Radford et al. 2018
("Improving language understanding by generative pre-training"), section 3.3 and figure 1.
Shape legend: T length.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from jaxnlp.data.joined_text import encode_between, encode_following, encode_joined
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError

Ids = Sequence[int]
TEXTS, PLACE = "{text}", "<prompt>"


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """tokens, token_type_ids: (T,) int32. pool_position: the position whose hidden state represents the sequence.
    begins: the position of the first token of each text."""

    tokens: np.ndarray
    token_type_ids: np.ndarray
    pool_position: int
    begins: tuple[int, ...]


@dataclasses.dataclass(kw_only=True)
class Layout(abc.ABC):
    """Joins the texts of an example.

    both_orders: whether unordered texts are read in both orders. language_model: whether the tokens are also
        targets of a language model. num_places: number of positions in a sequence reserved for prompt vectors.
    """

    both_orders: ClassVar[bool] = False
    language_model: ClassVar[bool] = False
    num_places: ClassVar[int] = 0

    @abc.abstractmethod
    def special_ids(self, tokenizer: Tokenizer) -> tuple[Any, ...]:
        """The token ids that `sequence` needs. Raises FieldError naming a token that the vocabulary lacks."""

    def encode(self, tokenizer: Tokenizer, rows: Sequence[Sequence[str]]) -> list[tuple[list[Ids], tuple[Any, ...]]]:
        """For each row of texts, what `sequence` needs: the ids of the texts, and the special ids."""
        special_ids = self.special_ids(tokenizer)
        texts = list(dict.fromkeys(text for row in rows for text in row))
        ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
        return [([ids[text] for text in row], special_ids) for row in rows]

    @abc.abstractmethod
    def sequence(self, texts: Sequence[Ids], special_ids: tuple[Any, ...]) -> TokenSequence:
        """Joins the token ids of all texts into one sequence."""

    def overhead(self, num_texts: int, special_ids: tuple[Any, ...]) -> int:
        """Number of special tokens in a sequence of `num_texts` texts."""
        return len(self.sequence([()] * num_texts, special_ids).tokens)


@dataclasses.dataclass(kw_only=True)
class EncoderLayout(Layout):
    """BERT's layout. cls, sep: names of the tokenizer's special tokens."""

    cls: str = "[CLS]"
    sep: str = "[SEP]"

    def special_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return special_id(tokenizer, "cls", self.cls), special_id(tokenizer, "sep", self.sep)

    def sequence(self, texts: Sequence[Ids], special_ids: tuple[int, ...]) -> TokenSequence:
        cls, sep = special_ids
        parts = [[cls, *texts[0], sep], *([*text, sep] for text in texts[1:])]
        return _join(parts, [1] + [0] * (len(texts) - 1), pool_position=0, token_types=range(len(parts)))


@dataclasses.dataclass(kw_only=True)
class RobertaLayout(Layout):
    """RoBERTa's layout: two separators between texts, one type. cls, sep: names of the tokenizer's special tokens."""

    cls: str = "<s>"
    sep: str = "</s>"

    def special_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return special_id(tokenizer, "cls", self.cls), special_id(tokenizer, "sep", self.sep)

    def sequence(self, texts: Sequence[Ids], special_ids: tuple[int, ...]) -> TokenSequence:
        cls, sep = special_ids
        parts = [[cls, *texts[0], sep], *([sep, *text, sep] for text in texts[1:])]
        return _join(parts, [1] * len(texts), pool_position=0, token_types=[0] * len(parts))


@dataclasses.dataclass(kw_only=True)
class DecoderLayout(Layout):
    """GPT's layout.

    The sequence is represented by the hidden state of the last token, the only one that attends to all others.
    Unordered texts are read in both orders. The language-model loss can be kept as an auxiliary loss.

    start, delimiter, extract: names of the tokenizer's special tokens.
    """

    both_orders: ClassVar[bool] = True
    language_model: ClassVar[bool] = True
    start: str = "<start>"
    delimiter: str = "<delimiter>"
    extract: str = "<extract>"

    def special_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        names = {"start": self.start, "delimiter": self.delimiter, "extract": self.extract}
        return tuple(special_id(tokenizer, field, name) for field, name in names.items())

    def sequence(self, texts: Sequence[Ids], special_ids: tuple[int, ...]) -> TokenSequence:
        start, delimiter, extract = special_ids
        parts = [[start, *texts[0]], *([delimiter, *text] for text in texts[1:]), [extract]]
        length = sum(map(len, parts))
        joined = _join(parts, [1] * len(parts), pool_position=length - 1, token_types=[0] * len(parts))
        return dataclasses.replace(joined, begins=joined.begins[: len(texts)])


@dataclasses.dataclass(kw_only=True)
class Template(Layout):
    """Another layout with a template around its texts (P-tuning: Liu et al. 2021, arXiv:2103.10385).

    text: the template, as "<prompt><prompt>{text} It is about<prompt>". {text} marks the texts as joined by `layout`.
        The words before and after it are placed inside the special tokens of `layout` and are never truncated.
    place: the mark in `text` of a vector of `peft.prompt.PTuning` or `Prompt`. It is also the name of the special token
        at that position in the data.
    """

    text: str = "<prompt>{text}"
    place: str = PLACE
    layout: Layout = dataclasses.field(default_factory=EncoderLayout)

    def check(self) -> None:
        if not self.place:
            raise FieldError("place", self.place, f"expected the name of a special token, for example {PLACE!r}")
        if self.text.count(TEXTS) != 1:
            raise FieldError("text", self.text, f"expected exactly one {TEXTS}, the placeholder of the texts")

    @property
    def both_orders(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.layout.both_orders

    @property
    def num_places(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.text.count(self.place)

    def place_id(self, tokenizer: Tokenizer) -> int:
        return special_id(tokenizer, "place", self.place)

    def special_ids(self, tokenizer: Tokenizer) -> tuple[Any, ...]:
        """(ids before the texts, ids after them, special ids of `layout`)."""
        try:
            within = self.layout.special_ids(tokenizer)
        except FieldError as e:
            raise FieldError(e.field.replace(".layout.", ".layout.layout."), e.value, e.expected) from None
        lead, first, last, tail = self._words(tokenizer)
        return [*lead, *first[1]], [*encode_following(tokenizer, last), *tail], within

    def encode(self, tokenizer: Tokenizer, rows: Sequence[Sequence[str]]) -> list[tuple[list[Ids], tuple[Any, ...]]]:
        """The words beside the texts are encoded together with them; a token may cross their border."""
        within = self.special_ids(tokenizer)[-1]
        lead, (first, _), last, tail = self._words(tokenizer)
        starts = [[first, row[0], *([last] if len(row) == 1 else [])] for row in rows]
        beginnings = encode_joined(tokenizer, starts, after_special=self.place in self.text.split(TEXTS)[0])
        middles = super().encode(tokenizer, [row[1:-1] for row in rows])
        endings = encode_joined(tokenizer, [[row[-1], last] for row in rows])
        encoded: list[tuple[list[Ids], tuple[Any, ...]]] = []
        for begin, (middle, _), end in zip(beginnings, middles, endings, strict=True):
            before, text = begin[:2]
            texts: list[Ids] = [text] if len(begin) == 3 else [text, *middle, end[0]]
            after = begin[2] if len(begin) == 3 else end[1]
            encoded.append((texts, ([*lead, *before], [*after, *tail], within)))
        return encoded

    def _words(self, tokenizer: Tokenizer) -> tuple[list[int], tuple[str, Ids], str, list[int]]:
        """(ids up to the words before the texts, these words and their ids, the words after the texts, later ids)."""
        before, after = (part.split(self.place) for part in self.text.split(TEXTS))
        places = [self.place_id(tokenizer)] * (len(before) + len(after) - 2) if self.num_places else []
        lead = encode_between(tokenizer, [*before[:-1], ""], places[: len(before) - 1])
        whole = encode_between(tokenizer, before, places[: len(before) - 1])
        tail = encode_between(tokenizer, ["", *after[1:]], places[: len(after) - 1])
        return lead, (before[-1], whole[len(lead) :]), after[0], tail

    def sequence(self, texts: Sequence[Ids], special_ids: tuple[Any, ...]) -> TokenSequence:
        before, after, within = special_ids
        parts = [list(text) for text in texts]
        parts[0] = [*before, *parts[0]]
        parts[-1] = [*parts[-1], *after]
        joined = self.layout.sequence(parts, within)
        first, *later = joined.begins
        return dataclasses.replace(joined, begins=(first + len(before), *later))


def special_id(tokenizer: Tokenizer, field: str, name: str) -> int:
    """The id of the special token `name`. Raises FieldError naming the layout's field."""
    try:
        return tokenizer.special_id(name)
    except FieldError as e:
        raise FieldError(f"data.task.layout.{field}", e.value, e.expected) from None


def _join(parts: Sequence[Ids], skips: Sequence[int], pool_position: int, token_types: Sequence[int]) -> TokenSequence:
    """Concatenates parts.

    skips: number of special tokens at the front of each part. token_types: the token type of each part.
    """
    sizes = [len(part) for part in parts]
    starts = np.cumsum([0, *sizes[:-1]])
    tokens = np.asarray([token for part in parts for token in part], np.int32)
    begins = tuple(int(start) + skip for start, skip in zip(starts, skips, strict=True))
    return TokenSequence(tokens, np.repeat(np.asarray(token_types, np.int32), sizes), pool_position, begins)


def shorten(texts: Sequence[Ids], room: int) -> list[Ids]:
    """Truncates the texts to `room` tokens in total.

    The longest text loses its last token until all fit. Among texts of equal length the last one is truncated first, as
    in BERT.
    """
    sizes = [len(text) for text in texts]
    for _ in range(sum(sizes) - room):
        longest = max(sizes)
        last = max(i for i, size in enumerate(sizes) if size == longest)
        sizes[last] -= 1
    return [text[:size] for text, size in zip(texts, sizes, strict=True)]
