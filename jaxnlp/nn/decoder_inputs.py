"""Positions, masks and cache entries that a decoder prepares before its layers, with or without a cache.

Shape legend: B batch, T new tokens, S keys (the new tokens, or the positions of a cache).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnlp.errors import UserError
from jaxnlp.nn.attention import MultiHeadAttention
from jaxnlp.nn.masks import Mask
from jaxnlp.trees import PyTree


@dataclasses.dataclass(frozen=True)
class DecoderInputs:
    """Positions and mask of the new tokens, and the layers' caches.

    mask: its `offset` is the position of the first new token among the keys. layers: the cache of each layer, or None.
    """

    positions_BT: jax.Array
    mask: Mask
    layers: PyTree

    def bias(self, module: nn.Module | None) -> jax.Array | None:
        """Attention bias (1, H, T, S) of a `PositionEncoding.bias` module, by place in the row; None without a module.

        Within a segment, distances between places equal distances between positions.
        """
        if module is None:
            return None
        T, keys = self.positions_BT.shape[1], self.mask.key_segments_BS
        key_length = T if self.layers is None or keys is None else keys.shape[1]
        biased: Any = module
        return biased(self.mask.offset + jnp.arange(T), jnp.arange(key_length))

    def next_cache(self, layers: Any) -> dict[str, Any]:
        """The cache after the new tokens, from the caches of the layers."""
        T = self.positions_BT.shape[1]
        return {"layers": layers, "segments": self.mask.key_segments_BS, "offset": self.mask.offset + T}


def decoder_inputs(
    tokens_shape: tuple[int, int], segment_ids: Any, positions: Any, cache: Any, window: int | None = None
) -> DecoderInputs:
    """Positions from the cache's offset, and a causal mask whose key segments are the cache's and the new ones.

    Args:
        tokens_shape: (B, T).
        segment_ids: (B, T); None: one segment.
        positions: (B, T); None: offset, offset + 1, ...
        cache: from a config's `init_cache`, or None.
        window: size of the sliding window; None: no window.
    """
    B, T = tokens_shape
    offset = 0 if cache is None else cache["offset"]
    if positions is None:
        positions = jnp.broadcast_to(offset + jnp.arange(T), (B, T))
    keys = segment_ids
    if cache is not None:
        segment_ids = jnp.ones((B, T), jnp.int32) if segment_ids is None else segment_ids
        keys = lax.dynamic_update_slice(cache["segments"], segment_ids, (0, offset))
    mask = Mask(query_segments_BT=segment_ids, key_segments_BS=keys, offset=offset, window=window)
    return DecoderInputs(positions, mask, None if cache is None else cache["layers"])


def encoder_segments(inputs_BS: Any, input_segments: Any, cache: Any) -> Any:
    """Segments (B, S) of the encoder's inputs; from the cache if `inputs_BS` is None.

    Raises:
        UserError: neither inputs nor a cache that holds the encoder's keys and values.
    """
    if inputs_BS is None:
        if cache is None or "cross" not in cache:
            raise UserError(
                "inputs: got None, and the cache has no encoder keys and values; pass the inputs in the first call"
            )
        return cache["input_segments"]
    if cache is not None and input_segments is None:
        return jnp.ones(inputs_BS.shape, jnp.int32)
    return input_segments


def cross_mask(inputs: DecoderInputs, input_segments: Any) -> Mask:
    """Mask of cross-attention: tokens attend to the inputs of their own segment, or to all if these have none."""
    queries = None if input_segments is None else inputs.mask.query_segments_BT
    return Mask(causal=False, query_segments_BT=queries, key_segments_BS=input_segments)


def cross_keys_values(attention: MultiHeadAttention, memory_BSD: Any, cached: Any) -> tuple[Any, Any]:
    """((k, v) each (B, S, N, K), the same pair for the cache (B, N, S, K)): of the encoder's states, or cached ones."""
    swap = lambda pair: tuple(jnp.swapaxes(x, 1, 2) for x in pair)
    if cached is not None:
        return swap(cached), cached
    pair = attention.keys_values(memory_BSD)
    return pair, swap(pair)
