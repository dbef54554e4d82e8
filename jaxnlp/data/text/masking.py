"""Masked language modelling: the examples of BERT and RoBERTa.

About 15% of the tokens of each input are chosen. 80% of the chosen tokens are replaced by [MASK], 10% are replaced by a
random token, and 10% are unchanged (Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.1). The model
predicts the chosen tokens only.
Shape legend: B batch, T length, M predictions.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.data.samples import SampledModel, shown
from jaxnlp.data.task import Batch, Reader, Shapes, Task, require_tokenizer
from jaxnlp.data.text.sentences import SentenceInput, SentenceInputs, SentencePairs, pad
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.text.word_boundaries import Words
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.runtime import option

SHOWN = 600  # characters per sample

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig


@dataclasses.dataclass(kw_only=True)
class TokenChoice(abc.ABC):
    """How tokens are grouped for masking."""

    @abc.abstractmethod
    def groups(self, words: Words, tokens: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
        """Groups of the positions `places`. Each group is masked as a unit."""


@dataclasses.dataclass(kw_only=True)
class SingleTokens(TokenChoice):
    """Each token is chosen on its own."""

    def groups(self, words: Words, tokens: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
        return list(places[:, None])


@dataclasses.dataclass(kw_only=True)
class WholeWords(TokenChoice):
    """The tokens of a word are chosen together (BERT's whole-word masking)."""

    def groups(self, words: Words, tokens: np.ndarray, places: np.ndarray) -> list[np.ndarray]:
        may = np.zeros(len(tokens), bool)
        may[places] = True
        return [span for span in words.spans(tokens) if may[span[0]]]


@dataclasses.dataclass(kw_only=True)
class Masked(Task):
    """Examples for `objectives.masked_lm`.

    text: SentencePairs() (BERT) or FullSentences() (RoBERTa).
    choose: SingleTokens() or WholeWords().
    rate: fraction of the tokens that are chosen, special tokens not counted; at least one token is chosen.
    mask_share, random_share: fractions of the chosen tokens that are replaced by [MASK] and by a random token; the rest
        are unchanged.
    static_copies: 0 draws a new mask each time a text is read (dynamic masking: Liu et al. 2019, section 4.1). k > 0
        reads each text k times per epoch, each copy with a fixed mask (and a fixed B) of its own; BERT uses 10.
    cls, sep, mask: names of the tokenizer's special tokens.
    """

    unit: ClassVar[str] = "predicted tokens"
    text: SentenceInputs = dataclasses.field(default_factory=SentencePairs)
    choose: TokenChoice = dataclasses.field(default_factory=SingleTokens)
    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    static_copies: int = 0
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    mask: str = "[MASK]"

    def check(self) -> None:
        if not 0 < self.rate < 1:
            raise FieldError("rate", self.rate, "expected a fraction in (0, 1), for example 0.15")
        for field, share in (("mask_share", self.mask_share), ("random_share", self.random_share)):
            if not 0 <= share <= 1:
                raise FieldError(field, share, "expected a fraction in [0, 1]")
        if self.mask_share + self.random_share > 1:
            raise FieldError("random_share", self.random_share, f"the sum with mask_share={self.mask_share} exceeds 1")
        if self.static_copies < 0:
            raise FieldError("static_copies", self.static_copies, "expected a positive number, or 0 for dynamic masks")

    def num_predictions(self, length: int) -> int:
        """M, the number of prediction slots in an input of `length` tokens."""
        return max(1, round(self.rate * length))

    def open(self, store: TokenStore, tokenizer: Tokenizer | None, config: "DataConfig") -> "MaskedReader":
        return MaskedReader(self, store, require_tokenizer(tokenizer), config.seq_len, config.seed)

    def shapes(self, config: "DataConfig") -> Shapes:
        T, M = config.seq_len, self.num_predictions(config.seq_len)
        fields: dict[str, Any] = dict.fromkeys(("tokens", "token_type_ids", "segment_ids"), ((T,), np.int32))
        fields |= {"masked_positions": ((M,), np.int32), "targets": ((M,), np.int32), "weights": ((M,), np.float32)}
        if self.text.pairs:
            fields |= {"next_sentence": ((), np.int32), "pair_weights": ((), np.float32)}
        return fields

    def predicted_fraction(self, config: "DataConfig") -> float:
        return self.num_predictions(config.seq_len) / config.seq_len

    def sample(self, model: SampledModel) -> list[str]:
        """The longest row of the first batch, with masked words as [original > prediction]."""
        (batch,) = model.batches(1)
        row = int(np.argmax(batch["segment_ids"].sum(1)))
        tokens, targets, predictions = batch["tokens"][row], batch["targets"][row], model.run(_best_words, batch)[row]
        slots = {
            int(place): k for k, place in enumerate(batch["masked_positions"][row]) if batch["weights"][row, k] > 0
        }
        pieces, words = model.tokenizer.token_bytes(), b""  # a character may be spread over several tokens
        within = spaced(model.tokenizer)
        for place in range(int(batch["segment_ids"][row].sum())):
            k = slots.get(place)
            if k is None:
                piece = pieces[tokens[place]]
                words += b" | " if piece is None else within(piece)
            else:
                words += f"[{shown(pieces[targets[k]], '|')} > {shown(pieces[predictions[k]], '|')}]".encode()
        right = sum(targets[k] == predictions[k] for k in slots.values())
        title = f"a validation text, masked words as [original > prediction], {right} of {len(slots)} right:"
        text = words.decode(errors="replace")[:SHOWN].strip("\n")
        return ["", title, "", *(f"  | {line}" for line in text.splitlines())]

    def next_commands(self, model: ModelConfig, prompt: str) -> list[tuple[str, str, str]]:
        fill_in = ("fill in", "fill_mask", option("text", f"{self.mask} {prompt}"))
        return [*super().next_commands(model, prompt), fill_in]


def _best_words(apply: Callable, batch: Any) -> jax.Array:
    """(B, M) the most likely token at each masked position."""
    inputs = {name: batch[name] for name in ("token_type_ids", "segment_ids", "masked_positions")}
    return jnp.argmax(apply(batch["tokens"], **inputs)["masked_lm"], -1)


def spaced(tokenizer: Tokenizer) -> Callable[[bytes], bytes]:
    """Returns the text of a piece between others: with a space before each word if the vocabulary has no spaces."""
    if mark := tokenizer.continuation:
        return lambda piece: piece[len(mark) :] if piece.startswith(mark) else b" " + piece
    return (lambda piece: b" " + piece.lstrip()) if tokenizer.tokens_are_words else lambda piece: piece


class MaskedReader(Reader):
    """Reads masked inputs.

    Batches hold `tokens`, `token_type_ids`, `segment_ids` (B, T) int32; `masked_positions` (B, M) int32, the chosen
    positions; `targets` (B, M) int32, the original tokens there; and `weights` (B, M) float32, 0 in unused slots.
    Batches of pairs also hold `next_sentence` (B,) int32, 0 if B follows A and 1 otherwise, and `pair_weights` (B,)
    float32.
    """

    def __init__(self, config: Masked, store: TokenStore, tokenizer: Tokenizer, length: int, seed: int):
        self._config, self._length, self._seed, self._eos_id = config, length, seed, store.meta.eos_id
        cls, sep, self._mask = (tokenizer.special_id(name) for name in (config.cls, config.sep, config.mask))
        self._words = Words(tokenizer)
        self._text = config.text.open(store, self._words, cls, sep, length)
        self._special_V = self._words.special_V
        self._ordinary = np.flatnonzero(~self._special_V)

    def __len__(self) -> int:
        return len(self._text) * max(1, self._config.static_copies)

    def batch(self, records: Sequence[int | None], indices: Sequence[int]) -> Batch:
        M = self._config.num_predictions(self._length)
        rows: list[SentenceInput | None] = []
        masked_positions, targets = (np.zeros((len(records), M), np.int32) for _ in range(2))
        weights = np.zeros((len(records), M), np.float32)
        for i, (index, position) in enumerate(zip(records, indices, strict=True)):
            if index is None:
                rows.append(None)
                continue
            random = np.random.default_rng((self._seed, index if self._config.static_copies else position))
            record = self._text.record(index % len(self._text), random)
            places = self._chosen(record.tokens, M, random)
            masked_positions[i, : len(places)], targets[i, : len(places)] = places, record.tokens[places]
            weights[i, : len(places)] = 1.0
            rows.append(dataclasses.replace(record, tokens=self._masked(record.tokens, places, random)))
        batch = pad(rows, self._length, self._eos_id)
        batch |= {"masked_positions": masked_positions, "targets": targets, "weights": weights}
        if self._config.text.pairs:
            batch["next_sentence"] = np.asarray([row.next_sentence if row else 0 for row in rows], np.int32)
            batch["pair_weights"] = np.asarray([row is not None for row in rows], np.float32)
        return batch

    def _chosen(self, tokens: np.ndarray, limit: int, random: np.random.Generator) -> np.ndarray:
        """Positions of the tokens to predict, in order. A group that would exceed their number is skipped."""
        ordinary = np.flatnonzero(~self._special_V[tokens])
        num_wanted = min(limit, max(1, round(self._config.rate * len(ordinary))))
        groups = self._config.choose.groups(self._words, tokens, ordinary)
        positions: list[int] = []
        for k in random.permutation(len(groups)):
            if len(positions) == num_wanted:
                break
            if len(positions) + len(groups[k]) <= num_wanted:
                positions.extend(groups[k])
        return np.sort(np.asarray(positions, np.int32))

    def _masked(self, tokens: np.ndarray, places: np.ndarray, random: np.random.Generator) -> np.ndarray:
        tokens, c = tokens.copy(), self._config
        draw = random.random(len(places))
        random_ids = self._ordinary[random.integers(len(self._ordinary), size=len(places))]
        unmasked = np.where(draw < c.mask_share + c.random_share, random_ids, -1)  # -1: unchanged
        replacements = np.where(draw < c.mask_share, self._mask, unmasked)
        tokens[places] = np.where(replacements < 0, tokens[places], replacements)
        return tokens
