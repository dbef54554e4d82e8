"""Positions: learned and sinusoidal vectors added to the embeddings, and rotary turns of queries and keys.

Each is a small config object. `added` ones build a module that maps positions to vectors;
`Rotary` instead turns queries and keys inside attention.
Shape legend: B batch, T length, D model, H heads, K head size.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import FieldError
from jaxnlp.nn.partitioning import parameter
from jaxnlp.nn.policy import Policy


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Learned:
    """A table with one vector a position, up to the model's `max_len` (GPT-2, BERT)."""

    bounded = True

    def module(self, max_len: int, embed_dim: int, policy: Policy, name: str) -> nn.Module | None:
        return _LearnedPositions(max_len, embed_dim, policy, name=name)

    def rotate(self, x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        return x_BTHK


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Sinusoidal:
    """sin and cos of geometrically spaced wavelengths (Vaswani et al. 2017, section 3.5); any length."""

    bounded = False
    max_wavelength: float = 10000.0

    def check(self) -> None:
        _check_base("max_wavelength", self.max_wavelength)

    def module(self, max_len: int, embed_dim: int, policy: Policy, name: str) -> nn.Module | None:
        if embed_dim % 2:
            raise FieldError("embed_dim", embed_dim, "expected an even number with Sinusoidal() positions")
        return _SinusoidalPositions(embed_dim, self.max_wavelength, policy, name=name)

    def rotate(self, x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        return x_BTHK


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Rotary:
    """Queries and keys turned by an angle that grows with position (Su et al. 2021, arXiv:2104.09864).

    The pairs are (i, i + K/2), as Llama and GPT-NeoX store them.
    """

    bounded = False
    base: float = 10000.0

    def check(self) -> None:
        _check_base("base", self.base)

    def module(self, max_len: int, embed_dim: int, policy: Policy, name: str) -> nn.Module | None:
        return None

    def rotate(self, x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        half = x_BTHK.shape[-1] // 2
        frequency = self.base ** (-np.arange(half, dtype=np.float32) / half)
        angle = positions_BT.astype(jnp.float32)[..., None, None] * frequency
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)


def _check_base(field: str, value: float) -> None:
    if not value > 1:
        raise FieldError(field, value, "expected a number above 1, as 10000.0")


class _LearnedPositions(nn.Module):
    """Parameter: `embedding`, (max_len, embed_dim). A position beyond the table gives NaN."""

    max_len: int
    embed_dim: int
    policy: Policy

    @nn.compact
    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        init, shape = nn.initializers.normal(0.02), (self.max_len, self.embed_dim)
        table = parameter(self, "embedding", init, ("length", "embed"), shape, self.policy.param_dtype)
        rows = table.at[positions_BT].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows.astype(self.policy.dtype)


class _SinusoidalPositions(nn.Module):
    embed_dim: int
    max_wavelength: float
    policy: Policy

    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        return sinusoid(positions_BT, self.embed_dim, self.max_wavelength).astype(self.policy.dtype)


def sinusoid(positions: jax.Array, dim: int, max_wavelength: float = 10000.0) -> jax.Array:
    """PE(p, 2i) = sin(p / w^(2i/dim)), PE(p, 2i+1) = cos of the same; (..., dim), float32."""
    frequency = max_wavelength ** (-np.arange(0, dim, 2, dtype=np.float32) / dim)
    angle = positions.astype(jnp.float32)[..., None] * frequency
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(*positions.shape, dim)
