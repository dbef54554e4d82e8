"""Span corruption: the examples of T5.

Spans of the text are dropped. In the input, each is replaced by a sentinel. The target lists the sentinels, each
followed by the dropped tokens (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4 and figure 2):

  input   Thank you <extra_id_0> me to your party <extra_id_1> week.
  target  <extra_id_0> for inviting <extra_id_1> last

Shape legend: B batch, S input length, T target length.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxnlp.data import encoder_decoder
from jaxnlp.data.task import Batch, Reader, Shapes, Task, require_tokenizer
from jaxnlp.data.text.sentinels import sentinels
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig


@dataclasses.dataclass(kw_only=True)
class SpanCorruption(Task):
    """Examples for `objectives.seq2seq`. Inputs have `seq_len` tokens; the target length follows from it (`lengths`).

    noise_density: fraction of the tokens that are dropped.
    mean_span_length: mean length of a span, in tokens.
    decoder_start_token: name of the special token that the decoder starts from; None is the end-of-sequence token. T5
        uses "<pad>".
    Inputs and targets end with the tokenizer's end-of-text token.
    """

    unit: ClassVar[str] = "predicted tokens"
    encoder_decoder: ClassVar[bool] = True
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    decoder_start_token: str | None = None

    def check(self) -> None:
        if not 0 < self.noise_density < 1:
            raise FieldError("noise_density", self.noise_density, "expected a fraction in (0, 1), for example 0.15")
        if not self.mean_span_length >= 1:
            raise FieldError("mean_span_length", self.mean_span_length, "expected 1 or more tokens, for example 3.0")

    def counts(self, length: int) -> tuple[int, int]:
        """(number of dropped tokens, number of spans) for a text of `length` tokens, `length` >= 2."""
        noise = min(max(1, round(length * self.noise_density)), length - 1)
        spans = max(1, round(noise / self.mean_span_length))
        return noise, min(spans, noise, length - noise)

    def lengths(self, seq_len: int) -> tuple[int, int]:
        """(text tokens per example, T): the longest text whose corrupted input has at most `seq_len` tokens.

        Raises:
            FieldError: `seq_len` is too short.
        """

        def sizes(length: int) -> tuple[int, int]:
            noise, spans = self.counts(length)
            return length - noise + spans + 1, noise + spans + 1

        length = 2
        if sizes(length)[0] > seq_len:
            raise FieldError("data.seq_len", seq_len, f"expected {sizes(length)[0]} or more with SpanCorruption()")
        while sizes(length + 1)[0] <= seq_len:
            length += 1
        return length, sizes(length)[1]

    def open(self, store: TokenStore, tokenizer: Tokenizer | None, config: "DataConfig") -> "SpanCorruptionReader":
        return SpanCorruptionReader(self, store, require_tokenizer(tokenizer), config.seq_len, config.seed)

    def shapes(self, config: "DataConfig") -> Shapes:
        return encoder_decoder.shapes(config.seq_len, self.lengths(config.seq_len)[1])

    def predicted_fraction(self, config: "DataConfig") -> float:
        """Number of target positions per input position."""
        return self.lengths(config.seq_len)[1] / config.seq_len


class SpanCorruptionReader(Reader):
    """Batches hold the arrays of `encoder_decoder.collate_pairs`."""

    def __init__(self, config: SpanCorruption, store: TokenStore, tokenizer: Tokenizer, seq_len: int, seed: int):
        self._config, self._store, self._seed, self._eos_id = config, store, seed, store.meta.eos_id
        self._size = seq_len
        self._text, self._target_size = config.lengths(seq_len)
        self._decoder_start_id = (
            self._eos_id if config.decoder_start_token is None else tokenizer.special_id(config.decoder_start_token)
        )
        names = sentinels(config.counts(self._text)[1])
        self._sentinels = np.asarray([tokenizer.special_id(name) for name in names], np.int32)

    def __len__(self) -> int:
        # The remainder is a separate example if it has a token to drop and one to keep.
        full, remainder = divmod(len(self._store), self._text)
        return full + (remainder > 1)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._store.read(index * self._text, (index + 1) * self._text)

    def batch(self, records: Sequence[np.ndarray | None], indices: Sequence[int]) -> Batch:
        pairs: list[Any] = []
        for tokens, position in zip(records, indices, strict=True):
            if tokens is None:
                pairs.append(None)
                continue
            random = np.random.default_rng((self._seed, position))
            texts = corrupt(tokens, *self._config.counts(len(tokens)), self._sentinels, random)
            pairs.append(tuple(np.append(text, np.int32(self._eos_id)) for text in texts))
        return encoder_decoder.collate_pairs(pairs, self._size, self._target_size, self._eos_id, self._decoder_start_id)


def corrupt(
    tokens: np.ndarray, noise: int, spans: int, sentinel_ids: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Drops `noise` tokens of a text in `spans` spans. Returns (input, target) without end tokens, int32.

    Kept and dropped spans alternate, starting with a kept one. Their lengths are drawn uniformly from all cuts.
    """
    kept_sizes, dropped_sizes = _cut(len(tokens) - noise, spans, random), _cut(noise, spans, random)
    source, target, place = [], [], 0
    for num_kept, num_dropped, sentinel in zip(kept_sizes, dropped_sizes, sentinel_ids, strict=False):
        source += [tokens[place : place + num_kept], [sentinel]]
        target += [[sentinel], tokens[place + num_kept : place + num_kept + num_dropped]]
        place += num_kept + num_dropped
    return np.concatenate(source).astype(np.int32), np.concatenate(target).astype(np.int32)


def _cut(items: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """Random sizes of `parts` parts with at least one item each, `items` in total."""
    cuts = 1 + np.sort(random.choice(items - 1, parts - 1, replace=False)) if parts > 1 else np.empty(0, int)
    return np.diff(np.concatenate([[0], cuts, [items]])).astype(int)
