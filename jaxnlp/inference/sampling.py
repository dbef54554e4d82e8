"""Sampling the next token from its logits.

Shape legend: B batch, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.inference.processors import NEVER, Processors

LOWEST = 1e-6  # temperature below which every row is shifted, since float32 would round its quotients


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling(Processors):
    """Options of sampling, applied after those of `Processors`.

    Filters apply in this order: temperature, top_k, top_p, min_p.

    temperature: divides the logits; 0 takes the most likely token (greedy decoding).
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the smallest set of most likely tokens whose total probability reaches top_p (nucleus sampling,
        Holtzman et al. 2020, arXiv:1904.09751); 1.0 keeps all.
    min_p: keep tokens at least min_p times as likely as the most likely one (Nguyen et al. 2024,
        arXiv:2407.01082); 0.0 keeps all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.temperature < float("inf"):
            raise FieldError("temperature", self.temperature, "expected 0 (greedy) or more")
        if self.top_k < 0:
            raise FieldError("top_k", self.top_k, "expected 1 or more, or 0 to keep all tokens")
        if not 0 < self.top_p <= 1:
            raise FieldError("top_p", self.top_p, "expected a probability in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise FieldError("min_p", self.min_p, "expected a fraction of the highest probability, in [0, 1]")


def sample(logits_BV: jax.Array, key: jax.Array, sampling: Sampling) -> jax.Array:
    """One token id per row, (B,) int32. Greedy ties go to the lowest id."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, filtered(logits_BV, sampling), axis=-1).astype(jnp.int32)


def filtered(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """The logits that `sample` draws from: divided by the temperature, and -inf for filtered tokens."""
    logits_BV = _tempered(logits_BV, sampling.temperature)
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        least = jax.lax.top_k(logits_BV, sampling.top_k)[0][..., -1:]
        logits_BV = jnp.where(logits_BV < least, NEVER, logits_BV)
    if sampling.top_p < 1:
        order = jnp.argsort(-logits_BV, axis=-1)
        ranked = jnp.take_along_axis(jax.nn.softmax(logits_BV, axis=-1), order, axis=-1)
        before = jnp.cumsum(ranked, axis=-1) - ranked
        keep = jnp.put_along_axis(jnp.zeros_like(before, bool), order, before < sampling.top_p, axis=-1, inplace=False)
        logits_BV = jnp.where(keep, logits_BV, NEVER)
    if sampling.min_p > 0:
        probs_BV = jax.nn.softmax(logits_BV, axis=-1)
        likely_BV = probs_BV >= sampling.min_p * probs_BV.max(axis=-1, keepdims=True)
        logits_BV = jnp.where(likely_BV, logits_BV, NEVER)
    return logits_BV


def _tempered(logits_BV: jax.Array, temperature: float) -> jax.Array:
    """The logits divided by the temperature. Where the quotient of the largest would overflow, or the temperature is
    below LOWEST, the largest becomes 0 first, which changes no probability; float32 rounds the least temperatures to 0.
    """
    if temperature < LOWEST:
        logits_BV = logits_BV.astype(jnp.float32)
        temperature = max(temperature, float(jnp.finfo(jnp.float32).tiny))  # the draw is greedy long before
    largest_B1 = logits_BV.max(axis=-1, keepdims=True)
    is_shifted_B1 = jnp.isfinite(largest_B1) & (jnp.isinf(largest_B1 / temperature) | (temperature < LOWEST))
    return (logits_BV - jnp.where(is_shifted_B1, largest_B1, 0)) / temperature
