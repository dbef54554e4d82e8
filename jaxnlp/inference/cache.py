"""Operations on the key-value cache during generation: growing it, and repeating and reordering it for beams.

Entries of a cache (`nn/stack.py`): "layers", the (k, v) pairs of self-attention, each (B, N, S, K) or with a leading
layer axis; "segments" (B, S); "offset". For an encoder-decoder also "cross", the (k, v) pairs of the encoder's output,
and "input_segments"; both stay constant.
"""

from typing import Any

import jax
import jax.numpy as jnp

FIRST_CACHE = 64  # positions in the first cache; it doubles from there


def cache_lengths(prompt: int, total: int) -> list[int]:
    """Successive cache lengths: doubled from the first that is longer than `prompt`, up to `total`."""
    length = FIRST_CACHE
    while length <= prompt:
        length *= 2
    lengths = []
    while length < total:
        lengths.append(length)
        length *= 2
    return [*lengths, total]


def grow(cache: dict[str, Any], length: int) -> dict[str, Any]:
    """The cache padded to `length` positions: S is axis -2 of keys and values, axis 1 of segments."""

    def pad(x, axis):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, widths)

    layers = jax.tree.map(lambda x: pad(x, x.ndim - 2), cache["layers"])
    return {**cache, "layers": layers, "segments": pad(cache["segments"], 1)}


def repeat(cache: dict[str, Any], times: int) -> dict[str, Any]:
    """The cache with each row repeated `times` times, once per beam."""

    def pairs(tree):
        return jax.tree.map(lambda x: jnp.repeat(x, times, axis=x.ndim - 4), tree)

    repeated = {name: pairs(cache[name]) for name in ("layers", "cross") if name in cache}
    for name in ("segments", "input_segments"):
        if cache.get(name) is not None:
            repeated[name] = jnp.repeat(cache[name], times, axis=0)
    return {**cache, **repeated}


def reorder(cache: dict[str, Any], parents_BN: jax.Array) -> dict[str, Any]:
    """The cache with each beam's self-attention keys and values replaced by its parent's.

    All other entries are equal for the beams of a row.
    """
    B, N = parents_BN.shape
    rows_R = (parents_BN + N * jnp.arange(B)[:, None]).reshape(-1)
    return {**cache, "layers": jax.tree.map(lambda x: jnp.take(x, rows_R, axis=x.ndim - 4), cache["layers"])}
