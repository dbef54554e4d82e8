"""Character ids of words, and a character CNN with highway layers (Kim et al. 2016, arXiv:1508.06615), as in ELMo.

A character is a UTF-8 byte, so every word in every script has a vector. The ids are those of AllenNLP's ELMo.
Shape legend: N words, C characters of a word, K width of a filter, E size of a character's vector, F filters, P output.
"""

from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.nn.linear import Embed, Linear, matmul
from jaxnlp.nn.partitioning import parameter
from jaxnlp.nn.policy import Policy

NO_WORD = 0  # every character of a position without a word
BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, PADDING = range(257, 262)  # byte b is b + 1
NUM_CHARACTERS = 262


def spell(words: Iterable[str | bytes | int], max_chars: int) -> np.ndarray:
    """The character ids of words, (N, max_chars) int32: BEGIN_WORD, the bytes, END_WORD, PADDING.

    Args:
        words: each a str, its UTF-8 bytes, or BEGIN_SENTENCE or END_SENTENCE, a word of that one character.
        max_chars: length of a word, its two markers included; longer words are truncated. ELMo's is 50.
    """
    rows = [_spell(word, max_chars) for word in words]
    return np.asarray(rows, np.int32).reshape(-1, max_chars)


def _spell(word: str | bytes | int, max_chars: int) -> list[int]:
    if isinstance(word, int):
        characters = [word]
    else:
        text = word.encode(errors="replace") if isinstance(word, str) else word
        characters = [byte + 1 for byte in text[: max_chars - 2]]
    return [BEGIN_WORD, *characters, END_WORD, *[PADDING] * (max_chars - 2 - len(characters))]


class CharacterCNN(nn.Module):
    """Words to vectors: convolutions, max-pooled over the word and passed through a ReLU; highway layers; a linear map.

    filters: (width, count) of each kind of filter. Parameters: `characters` (262, E); `filter_i`, with `kernel`
    (K, E, F_i) and `bias` (F_i,); `highway_i`; `projection` (F, P).
    """

    char_dim: int
    filters: tuple[tuple[int, int], ...]
    num_highway: int
    embed_dim: int
    policy: Policy

    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        """Character ids (..., C) to vectors (..., P) in the compute dtype."""
        policy, embed_init = self.policy, nn.initializers.uniform(2.0)
        embed = Embed(
            NUM_CHARACTERS,
            self.char_dim,
            policy,
            axes=("characters", "char"),
            embedding_init=lambda *args: embed_init(*args) - 1.0,
            name="characters",
        )
        x_NCE = embed(words.reshape(-1, words.shape[-1]))
        pooled = [
            _Filter(width, count, policy, name=f"filter_{i}")(x_NCE) for i, (width, count) in enumerate(self.filters)
        ]
        x_NF = jnp.concatenate(pooled, axis=-1)
        for i in range(self.num_highway):
            x_NF = Highway(policy, name=f"highway_{i}")(x_NF)
        init = nn.initializers.normal(x_NF.shape[-1] ** -0.5)
        project = Linear((self.embed_dim,), ("mlp", "embed"), policy, kernel_init=init, name="projection")
        return project(x_NF).reshape(*words.shape[:-1], self.embed_dim)


class _Filter(nn.Module):
    """relu(max_i(W x_i + b)): a convolution over a word's characters, without padding, and max-pooling."""

    width: int
    count: int
    policy: Policy

    @nn.compact
    def __call__(self, x_NCE):
        K, F, (N, C, E), dtype = self.width, self.count, x_NCE.shape, self.policy.param_dtype
        init = nn.initializers.normal((2.0 / (K * E)) ** 0.5)
        kernel_KEF = parameter(self, "kernel", init, ("width", "char", "filters"), (K, E, F), dtype)
        bias_F = parameter(self, "bias", nn.initializers.zeros, ("filters",), (F,), dtype)
        windows = jnp.stack([x_NCE[:, i : C - K + 1 + i] for i in range(K)], axis=2).reshape(N, C - K + 1, K * E)
        y_NF = matmul(windows, kernel_KEF.reshape(K * E, F), self.policy).max(axis=1)
        return nn.relu(y_NF + bias_F.astype(jnp.float32)).astype(self.policy.dtype)


class Highway(nn.Module):
    """t relu(W x + b) + (1 - t) x, where t = sigmoid(W' x + b') (Srivastava et al. 2015, arXiv:1505.00387).

    b' is initialised to -2, so that an untrained layer mostly carries its input through. Parameters: `linear`, with
    `kernel` (F, 2, F), and `bias` (2, F): W' and b' first, then W and b.
    """

    policy: Policy

    @nn.compact
    def __call__(self, x_NF: jax.Array) -> jax.Array:
        F, policy, axes = x_NF.shape[-1], self.policy, ("embed", "gates", "mlp")
        init = nn.initializers.normal(F**-0.5)
        linear = Linear((2, F), axes, policy, use_bias=False, kernel_init=init, dtype="float32", name="linear")
        open_2F = lambda key, shape, dtype: jnp.zeros(shape, dtype).at[0].set(-2.0)
        bias_2F = parameter(self, "bias", open_2F, axes[1:], (2, F), policy.param_dtype)
        t_NF, y_NF = jnp.moveaxis(linear(x_NF) + bias_2F.astype(jnp.float32), -2, 0)
        t_NF = jax.nn.sigmoid(t_NF)
        return (t_NF * nn.relu(y_NF) + (1 - t_NF) * x_NF).astype(policy.dtype)
