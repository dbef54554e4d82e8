"""A text and the text to make of it: translation, summaries, answers.

  inputs    source </s>
  targets   target </s>, and the decoder reads the same one place later, after its first token

</s> stands for the tokenizer's separator. Shape legend: B batch, S input length, T target length.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.data import encoder_decoder
from jaxnlp.data.records import Record, text_field
from jaxnlp.data.tasks import task
from jaxnlp.data.tasks.layout import TokenSequence
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError


@dataclasses.dataclass(kw_only=True)
class TextPairs:
    """Examples for `objectives.seq2seq`.

    source, target: the fields that hold the texts.
    target_len: T; None is `data.seq_len`, which is S.
    start: name of the special token the decoder begins with; None is the separator. T5's own is "<pad>".
    truncate: cut texts that are longer, and tell how many; False refuses them.
    """

    source: str = "source"
    target: str = "target"
    target_len: int | None = None
    start: str | None = None
    truncate: bool = False

    records = True
    unit = "targets"

    def check(self) -> None:
        if self.target_len is not None and self.target_len < 2:
            raise FieldError("target_len", self.target_len, "expected 2 or more tokens, or None for data.seq_len")

    def resolved(self, source: Any) -> "TextPairs":
        return self

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, tell: task.Tell, labelled: bool = True
    ) -> list[task.Example]:
        """An example for each record: its source and its target, each with the separator after it.

        Raises:
            FieldError: a text longer than its length, and truncate is False.
        """
        task.room_of(length, 1)  # the separator; `check` sees to target_len
        lengths = (length, self.target_len or length)
        fits = [task.Fit(n, self.truncate, setting=s) for n, s in zip(lengths, self._settings, strict=True)]
        fields = {side: f"data.examples.{side}" for side in ("source", "target")}
        found: list[task.Example] = []
        for part in task.chunks(records, tell):
            given = [[text_field(r, getattr(self, side), told) for r in part] for side, told in fields.items()]
            tokens = [tokenizer.encode_batch(texts) for texts in given]
            for record, *pair in zip(part, *tokens, strict=True):
                cut = (fit(record, [ids], n - 1)[0] for fit, ids, n in zip(fits, pair, lengths, strict=True))
                found.append(task.Example(len(found), tuple(_ended(ids, tokenizer.separator) for ids in cut), 0))
        for fit in fits:
            fit.done(tell)
        return found

    @property
    def _settings(self) -> tuple[str, str]:
        return "data.seq_len", "data.seq_len" if self.target_len is None else "data.examples.target_len"

    def open(self, store: Any, tokenizer: Tokenizer | None, config: Any) -> "TextPairReader":
        return TextPairReader(self, store, tokenizer, config.seq_len)

    def shapes(self, config: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
        """As `Packed.shapes`."""
        return encoder_decoder.shapes(config.seq_len, self.target_len or config.seq_len)

    def predicted(self, config: Any) -> float:
        """As `Packed.predicted`: targets for each token of input."""
        return (self.target_len or config.seq_len) / config.seq_len


class TextPairReader(task.TaskReader):
    """Batches as `data/encoder_decoder.py` makes them."""

    def __init__(self, config: TextPairs, store: Any, tokenizer: Tokenizer | None, length: int):
        super().__init__(config, store, tokenizer, length)
        assert tokenizer is not None
        self._sizes = length, config.target_len or length
        self._start = tokenizer.separator if config.start is None else tokenizer.special(config.start)

    def batch(self, examples: Sequence[Any], numbers: Sequence[int]) -> dict[str, np.ndarray]:
        pairs: list[Any] = [e and tuple(sequence.tokens for sequence in e.sequences) for e in examples]
        return encoder_decoder.batch(pairs, *self._sizes, self._fill, self._start)


def _ended(ids: Sequence[int], separator: int) -> TokenSequence:
    tokens = np.asarray([*ids, separator], np.int32)
    return TokenSequence(tokens, np.zeros_like(tokens), len(tokens) - 1, (0,))
