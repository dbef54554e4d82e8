"""ELMo: a forward and a backward LSTM language model with words as sequences of characters.

Peters et al. 2018, arXiv:1802.05365, sections 3.1 to 3.4; the sizes and the character CNN are those of the published
model (Jozefowicz et al. 2016, arXiv:1602.02410; Kim et al. 2016). A word's features are a weighted sum of all layers of
both directions (`ScalarMix`); `features` computes them from words.

Shape legend: B batch, T words, C characters of a word, L layers, P size of a direction, H units of an LSTM,
V vocabulary.
"""

import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn import checks
from jaxnlp.nn.character_cnn import BEGIN_SENTENCE, END_SENTENCE, NO_WORD, CharacterCNN, spell
from jaxnlp.nn.linear import Embed
from jaxnlp.nn.model_config import Kind, ModelConfig
from jaxnlp.nn.norms import normalise
from jaxnlp.nn.partitioning import constrain, parameter
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.recurrent import LSTM, RecurrentLayer

FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
ROUND = 16  # `features` pads sentences to multiples of this many words, so that few lengths are compiled


@dataclasses.dataclass(kw_only=True)
class ElmoConfig(ModelConfig):
    """Sizes of an ELMo. The defaults are the published model's.

    vocab_size: size of the vocabulary of predicted words; None: the tokenizer's. Input words are not limited to it.
    max_chars: C, characters of a word, its two markers included.
    char_dim: size of a character's vector. filters: (width, count) of each kind of filter.
    num_highway: highway layers after the filters.
    embed_dim: P, size of the word vectors and of each direction of each layer. hidden_dim: H, units of an LSTM.
    num_layers: L, LSTMs in each direction. All but the first have a residual connection.
    cell_clip, projection_clip: bounds of an LSTM's cell and of its output; None: no clipping.
    dropout_rate: dropout on the input of each LSTM and of the output map.
    """

    kind: ClassVar[Kind] = "other"
    vocab_size: int | None = None
    max_chars: int = 50
    char_dim: int = 16
    filters: tuple[tuple[int, int], ...] = FILTERS
    num_highway: int = 2
    embed_dim: int = 512
    hidden_dim: int = 4096
    num_layers: int = 2
    cell_clip: float | None = 3.0
    projection_clip: float | None = 3.0
    dropout_rate: float = 0.1
    policy: Policy = dataclasses.field(default_factory=Policy)

    def check(self) -> None:
        """Raises FieldError naming the first field whose value cannot work."""
        checks.positive(self, "vocab_size", "char_dim", "embed_dim", "hidden_dim", "num_layers")
        checks.rates(self, "dropout_rate")
        if self.num_highway < 0:
            raise FieldError("num_highway", self.num_highway, "expected zero or more")
        if not self.filters:
            raise FieldError("filters", self.filters, "expected at least one (width, count), as ((1, 32), (2, 64))")
        for kind in self.filters:
            if len(kind) != 2 or min(kind) < 1:
                raise FieldError("filters", kind, "expected (width, count), both positive, as (3, 64)")
        widest = max(width for width, _ in self.filters)
        if self.max_chars < max(3, widest):
            raise FieldError(
                "max_chars", self.max_chars, f"expected at least 3 and the width of the widest filter, {widest}"
            )
        self.cell.check()

    @property
    def cell(self) -> LSTM:
        return LSTM(projection_dim=self.embed_dim, cell_clip=self.cell_clip, projection_clip=self.projection_clip)

    def build(self) -> "Elmo":
        return Elmo(self)

    def example_inputs(self, batch: int, length: int) -> tuple[jax.ShapeDtypeStruct]:
        """Shape and dtype of the module's positional argument: character ids (B, T, C)."""
        return (jax.ShapeDtypeStruct((batch, length, self.max_chars), jnp.int32),)

    def flops_per_token(self, length: int, predicted_fraction: float = 1.0) -> float:
        """Floating-point operations of one training step per word: three times the products of the forward pass."""
        C, E, F, P, H = self.max_chars, self.char_dim, sum(n for _, n in self.filters), self.embed_dim, self.hidden_dim
        characters = sum(2 * (C - width + 1) * width * E * count for width, count in self.filters)
        characters += self.num_highway * 4 * F * F + 2 * F * P
        assert self.vocab_size is not None
        direction = self.num_layers * 2 * (8 * H * P + H * P) + predicted_fraction * 2 * P * self.vocab_size
        return 3.0 * (characters + 2 * direction)


class Elmo(nn.Module):
    """Computes the layers of both directions, and their predictions, from words.

    Parameters: `words`, the character CNN; `forward_i` and `backward_i`, the LSTMs; `softmax`, shared by both
    directions, with `embed` (V, P) and `bias` (V,).
    """

    config: ElmoConfig

    @nn.compact
    def __call__(self, tokens_BTC, *, segment_ids=None, deterministic: bool = True) -> dict[str, jax.Array]:
        """A dict of layers and logits. Under `jit`, unused results are not computed.

        Args:
            tokens_BTC: character ids, as returned by `nn.character_cnn.spell`.
            segment_ids: (B, T) integers; a new id begins a new sentence, from the zero state, and 0 is padding.
                None: one sentence per row, with padding where all characters of a word are 0.
            deterministic: False applies dropout, which needs the "dropout" key.

        Returns:
            layers: (L + 1, B, T, 2P), float32: the word vectors, concatenated with themselves, then the forward and
                backward outputs of each layer; 0 at padding.
            forward, backward: (B, T, V), float32: logits of the next and of the previous word.

        Raises:
            UserError: the words are not padded to `max_chars` characters.
        """
        c = self.config
        if tokens_BTC.ndim != 3 or tokens_BTC.shape[-1] != c.max_chars:
            raise UserError(
                f"model.max_chars={c.max_chars}: the tokens have shape {tokens_BTC.shape}, expected (batch, words, "
                f"{c.max_chars}); set data.task.max_chars and model.max_chars to the same number"
            )
        segments_BT = (tokens_BTC != NO_WORD).any(-1) if segment_ids is None else segment_ids
        drop = nn.Dropout(c.dropout_rate, deterministic=deterministic)
        words = CharacterCNN(c.char_dim, c.filters, c.num_highway, c.embed_dim, c.policy, name="words")
        x_BTP = jnp.where((segments_BT != 0)[..., None], words(tokens_BTC), 0)
        x_BTP = constrain(x_BTP, "batch", "length", "activation")
        ways = {"forward": [x_BTP], "backward": [x_BTP]}
        for way, outputs in ways.items():
            for i in range(c.num_layers):
                x_BTP = drop(outputs[-1])
                layer = RecurrentLayer(c.cell, c.hidden_dim, way == "backward", c.policy, name=f"{way}_{i}")
                y_BTP, _ = layer(x_BTP, segments_BT, None)
                y_BTP = y_BTP if i == 0 else x_BTP + y_BTP
                outputs.append(constrain(y_BTP, "batch", "length", "activation"))
        layers = [jnp.concatenate(pair, axis=-1) for pair in zip(*ways.values(), strict=True)]
        softmax = Softmax(c, name="softmax")
        logits = {way: softmax(drop(outputs[-1])) for way, outputs in ways.items()}
        return {"layers": jnp.stack(layers).astype(jnp.float32), **logits}


class Softmax(nn.Module):
    """The logits W h + b of the vocabulary. Parameters: `embed` (V, P), `bias` (V,)."""

    config: ElmoConfig

    @nn.compact
    def __call__(self, x_BTP) -> jax.Array:
        c = self.config
        assert c.vocab_size is not None, "vocab_size is resolved before a model is built"
        init = nn.initializers.normal(c.embed_dim**-0.5)
        table = Embed(c.vocab_size, c.embed_dim, c.policy, embedding_init=init, name="embed")
        bias_V = parameter(self, "bias", nn.initializers.zeros, ("vocab",), (c.vocab_size,), c.policy.param_dtype)
        return table.logits(x_BTP) + bias_V.astype(jnp.float32)


class ScalarMix(nn.Module):
    """gamma sum_j s_j h_j, with s the softmax of learned weights (equation 1): one vector per word from all layers.

    norm: normalise each vector to mean 0 and variance 1 first (Ba et al. 2016), without gain and bias.
    Parameters: `weights` (L + 1,), initially 0, which gives the mean of the layers; `gamma` (), initially 1.
    """

    norm: bool = False
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, layers: jax.Array) -> jax.Array:
        """layers (L + 1, ..., D) -> (..., D)."""
        weights = parameter(self, "weights", nn.initializers.zeros, ("layers",), layers.shape[:1], "float32")
        gamma = parameter(self, "gamma", nn.initializers.ones, (), (), "float32")
        if self.norm:
            layers = normalise(layers, jnp.ones(layers.shape[-1:]), self.epsilon, True)
        return gamma * jnp.tensordot(jax.nn.softmax(weights), layers, 1)


def features(
    config: ElmoConfig,
    params: Any,
    sentences: Sequence[Sequence[str]],
    *,
    mix: Any = None,
    norm: bool = False,
    batch_size: int = 32,
) -> list[np.ndarray]:
    """Contextual vectors of words, which need not be in the vocabulary.

    Args:
        config, params: config and parameters of a trained `Elmo`.
        sentences: the words of each sentence, spelled as in training (with the leading space, if the tokenizer's
            tokens include it). The sentence markers are added to each sentence and get no vector.
        mix: parameters of a trained `ScalarMix` with this `norm`; None: return all layers.
        norm: as in `ScalarMix`.
        batch_size: sentences in a batch; sentences are batched by length.

    Returns:
        For each sentence, in order, the vectors of its words, float32: (words, 2P), or without a mix (L + 1, words,
        2P).
    """
    shape, by_number = _Shape(copy.deepcopy(config)), {}
    for numbers, tokens_BTC in batches(config, sentences, batch_size):
        vectors = np.asarray(_vectors(shape, norm, params, mix, tokens_BTC))
        for row, number in enumerate(numbers):
            by_number[number] = vectors[..., row, 1 : 1 + len(sentences[number]), :]
    return [by_number[number] for number in range(len(sentences))]


class _Shape:
    """A hashable wrapper of a config, for a static argument of `jit`. Wrappers of equal configs are equal. The config
    must not change."""

    def __init__(self, config: ElmoConfig):
        self.config = config
        self._key = repr(config)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and self._key == other._key


@functools.partial(jax.jit, static_argnums=(0, 1))
def _vectors(shape: _Shape, norm: bool, params: Any, mix: Any, tokens_BTC: jax.Array) -> Any:
    """The vectors of `features` for one batch, jitted at module level so that equal calls compile once."""
    out: Any = shape.config.build().apply({"params": params}, tokens_BTC)
    return out["layers"] if mix is None else ScalarMix(norm).apply({"params": mix}, out["layers"])


def batches(
    config: ElmoConfig, sentences: Sequence[Sequence[str]], batch_size: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yields (indices of the sentences, their character ids (B, T, C)), shortest first; unused rows are padding."""
    order = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        T = -(-(len(sentences[numbers[-1]]) + 2) // ROUND) * ROUND
        tokens_BTC = np.full((batch_size, T, config.max_chars), NO_WORD, np.int32)
        for row, number in enumerate(numbers):
            words = spell([BEGIN_SENTENCE, *sentences[number], END_SENTENCE], config.max_chars)
            tokens_BTC[row, : len(words)] = words
        yield numbers, tokens_BTC
