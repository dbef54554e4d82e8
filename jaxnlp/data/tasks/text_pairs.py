"""Text-to-text tasks such as translation, summarisation and question answering.

  inputs    source </s>
  targets   target </s>; the decoder reads the targets shifted right by one, after its start token

</s> is the tokenizer's end-of-sequence token. Shape legend: B batch, S input length, T target length.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxnlp.data import encoder_decoder
from jaxnlp.data.records import text_field
from jaxnlp.data.source import Record
from jaxnlp.data.task import Batch, Shapes
from jaxnlp.data.tasks.encoding import Example, Logger, Truncator, chunks, text_room
from jaxnlp.data.tasks.labelled_task import LabelledTask, Prediction, RecordReader
from jaxnlp.data.tasks.layout import TokenSequence
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.metrics.generation import generation
from jaxnlp.metrics.metric import Scores

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig


@dataclasses.dataclass(kw_only=True)
class TextPairs(LabelledTask):
    """Examples for `objectives.seq2seq`.

    source, target: the fields that hold the texts.
    target_len: T; None is `data.seq_len`, which is S.
    decoder_start_token: name of the special token that the decoder starts from; None is the end-of-sequence token. T5
        uses "<pad>".
    truncate: whether to truncate texts that are too long and log their number. If False, such a text is an error.
    """

    unit: ClassVar[str] = "predicted tokens"
    output: ClassVar[str | None] = "text"
    encoder_decoder: ClassVar[bool] = True
    source: str = "source"
    target: str = "target"
    target_len: int | None = None
    decoder_start_token: str | None = None
    truncate: bool = False

    def check(self) -> None:
        if self.target_len is not None and self.target_len < 2:
            raise FieldError("target_len", self.target_len, "expected 2 or more tokens, or None for data.seq_len")

    def encode(
        self, records: Sequence[Record], tokenizer: Tokenizer, length: int, log: Logger, labelled: bool = True
    ) -> list[Example]:
        """Encodes each record as its source and its target, each followed by the end token.

        Without labels the target is empty.

        Raises:
            FieldError: a text is longer than its maximum length and `truncate` is False.
        """
        text_room(length, 1)  # the end token; `check` validates target_len
        lengths = (length, self.target_len or length)
        sides = zip(lengths, self._settings, ("source", "target"), strict=True)
        truncators = [Truncator(n, self.truncate, setting=setting, noun=noun) for n, setting, noun in sides]
        examples: list[Example] = []
        for part in chunks(records, log):
            sources = [self.prompt(record) for record in part]
            targets = [self._target(record) if labelled else "" for record in part]
            tokens = [tokenizer.encode_batch(texts) for texts in (sources, targets)]
            for record, *pair in zip(part, *tokens, strict=True):
                sizes = zip(truncators, pair, lengths, strict=True)
                truncated = (truncate(record, [ids], n - 1)[0] for truncate, ids, n in sizes)
                examples.append(Example(len(examples), tuple(_ended(ids, tokenizer.eos_id) for ids in truncated), 0))
        for truncator in truncators:
            truncator.report(log)
        return examples

    @property
    def _settings(self) -> tuple[str, str]:
        return "data.seq_len", "data.seq_len" if self.target_len is None else "data.task.target_len"

    def collate(
        self, examples: Sequence[Example | None], length: int, fill: int, decoder_start_id: int | None = None
    ) -> Batch:
        """The arrays of `encoder_decoder.collate_pairs`. decoder_start_id: the decoder's first token; None: `fill`."""
        pairs: list[Any] = [e and tuple(sequence.tokens for sequence in e.sequences) for e in examples]
        decoder_start_id = fill if decoder_start_id is None else decoder_start_id
        return encoder_decoder.collate_pairs(pairs, length, self.target_len or length, fill, decoder_start_id)

    def prompt(self, record: Record) -> str:
        return text_field(record, self.source, "data.task.source")

    def _target(self, record: Record) -> str:
        return text_field(record, self.target, "data.task.target")

    def decode(self, record: Record, examples: Sequence[Example], outputs: Sequence[str]) -> Prediction:
        return {"text": outputs[0]}

    def reference(self, record: Record) -> Prediction:
        return {"text": self._target(record)}

    def metrics(self, predictions: Sequence[Prediction], references: Sequence[Prediction]) -> Scores:
        return generation([p["text"] for p in predictions], [r["text"] for r in references])

    @property
    def text_field(self) -> str | None:
        return self.source

    def open(self, store: Any, tokenizer: Tokenizer | None, config: "DataConfig") -> "TextPairReader":
        return TextPairReader(self, store, tokenizer, config.seq_len)

    def shapes(self, config: "DataConfig") -> Shapes:
        return encoder_decoder.shapes(config.seq_len, self.target_len or config.seq_len)

    def predicted_fraction(self, config: "DataConfig") -> float:
        """Number of target positions per input position."""
        return (self.target_len or config.seq_len) / config.seq_len


class TextPairReader(RecordReader):
    """A `RecordReader` that knows the decoder's start token."""

    def __init__(self, task: TextPairs, store: Any, tokenizer: Tokenizer | None, length: int):
        super().__init__(task, store, tokenizer, length)
        assert tokenizer is not None
        name = task.decoder_start_token
        self._pairs, self._decoder_start_id = task, tokenizer.eos_id if name is None else tokenizer.special_id(name)

    def batch(self, records: Sequence[Example | None], indices: Sequence[int]) -> Batch:
        return self._pairs.collate(records, self.length, self.fill, self._decoder_start_id)


def _ended(ids: Sequence[int], end: int) -> TokenSequence:
    tokens = np.asarray([*ids, end], np.int32)
    return TokenSequence(tokens, np.zeros_like(tokens), len(tokens) - 1, (0,))
