"""Position encodings: vectors added to the embeddings, rotations of queries and keys, or biases of attention scores.

Each encoding is a small config object of one of the three kinds. `Learned` and `Sinusoidal` build a
module that maps positions to vectors; `Rotary` rotates queries and keys inside attention; `Alibi`
and `RelativeBuckets` build a module that maps the distance of a query-key pair to a score bias.
Shape legend: B batch, T (query) length, S key length, D model, H heads, K head size.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import FieldError
from jaxnlp.nn.partitioning import parameter
from jaxnlp.nn.policy import Policy


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class PositionEncoding:
    """Base class of the position encodings. A subclass overrides one of `build`, `rotate` and `bias`.

    bounded: positions are rows of a table, so sequences cannot be longer than the model's `max_length`.
    biased: `bias` returns a module.
    """

    bounded = False
    biased = False

    def build(self, max_length: int, embed_dim: int, policy: Policy, name: str) -> nn.Module | None:
        """A module positions_BT -> vectors_BTD, which are added to the embeddings; None: nothing is added."""
        return None

    def rotate(self, x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Queries or keys rotated by their positions."""
        return x_BTHK

    def bias(self, num_heads: int, policy: Policy, name: str) -> nn.Module | None:
        """A module (places_T, places_S) -> bias (1, H, T, S), which is added to the scores; None: no bias."""
        return None


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class NoPositions(PositionEncoding):
    """No position encoding."""


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Learned(PositionEncoding):
    """A learned vector for each position up to the model's `max_length` (GPT-2, BERT).

    first: row of the table for position 0 (2 in RoBERTa); the table has max_length + first rows.
    """

    bounded = True
    first: int = 0

    def check(self) -> None:
        if self.first < 0:
            raise FieldError("first", self.first, "expected zero or more")

    def build(self, max_length: int, embed_dim: int, policy: Policy, name: str) -> nn.Module | None:
        return _LearnedPositions(max_length, self.first, embed_dim, policy, name=name)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Sinusoidal(PositionEncoding):
    """Sines and cosines of geometrically spaced wavelengths (Vaswani et al. 2017, section 3.5), for any length."""

    max_wavelength: float = 10000.0

    def check(self) -> None:
        _check_base("max_wavelength", self.max_wavelength)

    def build(self, max_length: int, embed_dim: int, policy: Policy, name: str) -> nn.Module | None:
        if embed_dim % 2:
            raise FieldError("embed_dim", embed_dim, "expected an even number with Sinusoidal() positions")
        return _SinusoidalPositions(embed_dim, self.max_wavelength, policy, name=name)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class RotaryScaling:
    """Base class of the scalings of rotary frequencies, for sequences longer than those in pretraining."""

    def __call__(self, frequency: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        """(scaled frequencies, factor of queries and keys), from the frequencies of `Rotary(base=base)`."""
        return frequency, 1.0


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Rotary(PositionEncoding):
    """Queries and keys rotated by an angle that grows with position (Su et al. 2021, arXiv:2104.09864).

    The pairs are (i, i + K/2), as Llama and GPT-NeoX store them.

    base: pair i has the frequency base^(-2i/K).
    scaling: scaling of the frequencies for sequences longer than those in pretraining: None,
        `LinearScaling`, `Llama3Scaling` or `Yarn`.
    """

    base: float = 10000.0
    scaling: RotaryScaling | None = None

    def check(self) -> None:
        _check_base("base", self.base)

    def rotate(self, x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        half = x_BTHK.shape[-1] // 2
        frequency, scale = self.base ** (-np.arange(half, dtype=np.float32) / half), 1.0
        if self.scaling is not None:
            frequency, scale = self.scaling(frequency.astype(np.float64), self.base)
        angle = positions_BT.astype(jnp.float32)[..., None, None] * np.asarray(frequency, np.float32)
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        if scale != 1.0:
            sin, cos = scale * sin, scale * cos
        a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class LinearScaling(RotaryScaling):
    """Divides all positions by `factor` (Chen et al. 2023, arXiv:2306.15595, section 2.3)."""

    factor: float = 2.0

    def check(self) -> None:
        _check_factor(self.factor)

    def __call__(self, frequency: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        return frequency / self.factor, 1.0


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Llama3Scaling(RotaryScaling):
    """Divides low frequencies by `factor`, keeps high ones, and interpolates between (Llama 3.1, arXiv:2407.21783).

    original_max_length: sequence length in pretraining. Frequencies are low for wavelengths above
        original_max_length / low_freq_factor, and high for wavelengths below original_max_length / high_freq_factor.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192

    def check(self) -> None:
        _check_factor(self.factor)
        if not self.low_freq_factor < self.high_freq_factor:
            raise FieldError("high_freq_factor", self.high_freq_factor, f"expected more than {self.low_freq_factor}")

    def __call__(self, frequency: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        turns = self.original_max_length * frequency / (2 * np.pi)
        smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        smooth = np.clip(smooth, 0.0, 1.0)
        return frequency * (smooth + (1 - smooth) / self.factor), 1.0


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Yarn(RotaryScaling):
    """Divides low frequencies by `factor`, keeps high ones, interpolates between, and scales queries and keys.

    Peng et al. 2023, arXiv:2309.00071, sections 3.2 and 3.4.
    original_max_length: sequence length in pretraining.
    beta_fast, beta_slow: rotations within original_max_length above which a frequency is kept, and below which it is
        divided.
    attention_factor: factor of queries and keys; None: 0.1 log(factor) + 1.
    truncate: round the ends of the ramp to integer dimensions.
    """

    factor: float = 4.0
    original_max_length: int = 32768
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def check(self) -> None:
        _check_factor(self.factor)
        if not self.beta_slow < self.beta_fast:
            raise FieldError("beta_fast", self.beta_fast, f"expected more than beta_slow={self.beta_slow}")

    def __call__(self, frequency: np.ndarray, base: float) -> tuple[np.ndarray, float]:
        half = len(frequency)
        border = lambda turns: half * math.log(self.original_max_length / (turns * 2 * math.pi)) / math.log(base)
        low, high = border(self.beta_fast), border(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        divide = np.clip((np.arange(half) - low) / max(high - low, 0.001), 0.0, 1.0)
        scale = 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0
        scale = scale if self.attention_factor is None else self.attention_factor
        return frequency * (1 - divide + divide / self.factor), scale


def _check_factor(value: float) -> None:
    if not value >= 1:
        raise FieldError("factor", value, "expected 1 or more, as 8.0")


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Alibi(PositionEncoding):
    """A penalty proportional to distance, with a slope for each head (Press et al. 2021, arXiv:2108.12409).

    Head h of n has slope 2^(-8h/n). If n is not a power of two, the slopes of the next lower power
    come first, then every other slope of the next higher one, as in the paper's code.
    """

    biased = True

    def bias(self, num_heads: int, policy: Policy, name: str) -> nn.Module | None:
        return _AlibiBias(num_heads, name=name)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class RelativeBuckets(PositionEncoding):
    """A learned bias for each head and bucket of distances (T5: Raffel et al. 2020, section 2.1).

    num_buckets: half of the buckets are single small distances; the others are logarithmically spaced
        up to max_distance, and all larger distances share the last.
    bidirectional: half of the buckets are for keys after the query; otherwise these share bucket 0.
    """

    biased = True
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = False

    def check(self) -> None:
        exact = self.num_buckets // (4 if self.bidirectional else 2)
        if exact < 1:
            raise FieldError("num_buckets", self.num_buckets, "expected 2 or more, or 4 if bidirectional")
        if self.max_distance <= exact:
            raise FieldError("max_distance", self.max_distance, f"expected more than the {exact} exact buckets")

    def bias(self, num_heads: int, policy: Policy, name: str) -> nn.Module | None:
        return _BucketBias(self, num_heads, policy, name=name)


def _check_base(field: str, value: float) -> None:
    if not value > 1:
        raise FieldError(field, value, "expected a number above 1, as 10000.0")


class _LearnedPositions(nn.Module):
    """Parameter: `embedding`, (max_length + first, embed_dim). A position outside the table gives NaN."""

    max_length: int
    first: int
    embed_dim: int
    policy: Policy

    @nn.compact
    def __call__(self, positions_BT: jax.Array) -> jax.Array:
        init, shape = nn.initializers.normal(0.02), (self.max_length + self.first, self.embed_dim)
        table = parameter(self, "embedding", init, ("length", "embed"), shape, self.policy.param_dtype)
        rows = table.at[positions_BT + self.first].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
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


class _AlibiBias(nn.Module):
    num_heads: int

    def __call__(self, places_T: jax.Array, places_S: jax.Array) -> jax.Array:
        distance_TS = jnp.abs(places_T[:, None] - places_S[None, :]).astype(jnp.float32)
        return -(jnp.asarray(alibi_slopes(self.num_heads))[:, None, None] * distance_TS)[None]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The slope of each head, (H,), float32."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
    between = [2 ** (-4 * h / power) for h in range(1, 2 * power + 1, 2)]
    return np.asarray((slopes + between)[:num_heads], np.float32)


class _BucketBias(nn.Module):
    """Parameter: `embedding`, (num_buckets, H)."""

    config: RelativeBuckets
    num_heads: int
    policy: Policy

    @nn.compact
    def __call__(self, places_T: jax.Array, places_S: jax.Array) -> jax.Array:
        c = self.config
        init, shape = nn.initializers.normal(0.02), (c.num_buckets, self.num_heads)
        table = parameter(self, "embedding", init, ("buckets", "heads"), shape, self.policy.param_dtype)
        bucket_TS = relative_bucket(
            places_S[None, :] - places_T[:, None], c.num_buckets, c.max_distance, c.bidirectional
        )
        return jnp.moveaxis(table[bucket_TS].astype(jnp.float32), -1, 0)[None]


def relative_bucket(offset: jax.Array, num_buckets: int, max_distance: int, bidirectional: bool) -> jax.Array:
    """Bucket of each offset (key position minus query position), integers in [0, num_buckets)."""
    bucket = jnp.zeros_like(offset)
    if bidirectional:
        num_buckets //= 2
        bucket = jnp.where(offset > 0, num_buckets, 0)
        distance = jnp.abs(offset)
    else:
        distance = jnp.maximum(-offset, 0)
    exact = num_buckets // 2
    far = jnp.maximum(distance, exact).astype(jnp.float32)
    far = exact + (jnp.log(far / exact) / math.log(max_distance / exact) * (num_buckets - exact)).astype(jnp.int32)
    return bucket + jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))
