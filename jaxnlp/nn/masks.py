"""Attention masks.

Shape legend: B batch, T query length, S key length.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_segments_BT", "key_segments_BS", "prefix_B", "offset"],
    meta_fields=["causal", "window", "num_prefix_keys"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """An attention mask as a set of conditions, so that each kernel can apply them in its own form.

    A query-key pair is allowed if it meets all conditions. `Mask(causal=False)` allows every pair.

    causal: the key's position is not after the query's.
    prefix_B: the first prefix_B[i] positions of row i are visible to all queries under a causal mask
        (prefix LM: Raffel et al. 2020, arXiv:1910.10683, section 3.2.1).
    window: the distance between query and key is less than `window`: sliding-window attention
        (Beltagy et al. 2020, arXiv:2004.05150, section 3.1). None: no such condition.
    query_segments_BT, key_segments_BS: query and key are in the same segment, and the segment is
        not 0 (padding). With `key_segments_BS` alone: the key is not padding.
    offset: position of the first query among the keys: 0 in training; in decoding, the number
        of cached keys.
    num_prefix_keys: the first num_prefix_keys keys are visible to all queries regardless of the conditions, and the
        positions of the other keys are counted after them (prefix tuning: Li and Liang 2021, arXiv:2101.00190).
    """

    causal: bool = True
    window: int | None = None
    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None
    prefix_B: jax.Array | None = None
    offset: jax.Array | int = 0
    num_prefix_keys: int = 0

    @property
    def conditions(self) -> set[str]:
        """Names of the active conditions, for kernels that support only some of them."""
        active = {"causal": self.causal, "prefix": self.prefix_B is not None, "window": self.window is not None}
        active |= {"segments": self.key_segments_BS is not None, "num_prefix_keys": self.num_prefix_keys > 0}
        return {name for name, in_force in active.items() if in_force}

    def rows(self, start: int, stop: int) -> "Mask":
        """The mask of queries start..stop against keys 0..stop: one row block of a causal mask."""
        q, k = self.query_segments_BT, self.key_segments_BS
        return dataclasses.replace(
            self,
            query_segments_BT=None if q is None else q[:, start:stop],
            key_segments_BS=None if k is None else k[:, :stop],
            offset=start,
        )

    def dense(self, query_len: int, key_len: int) -> jax.Array | None:
        """Boolean (B or 1, 1, T, S), True where attention is allowed; None if every pair is allowed."""
        if self.num_prefix_keys:
            P = self.num_prefix_keys
            dense = dataclasses.replace(self, num_prefix_keys=0).dense(query_len, key_len - P)
            return None if dense is None else jnp.pad(dense, ((0, 0),) * 3 + ((P, 0),), constant_values=True)
        parts = []
        query, key = self.offset + jnp.arange(query_len)[:, None], jnp.arange(key_len)[None, :]
        if self.causal:
            earlier = (key <= query)[None, None]
            if self.prefix_B is not None:
                earlier = earlier | (key < self.prefix_B[:, None, None])[:, None]
            parts.append(earlier)
        if self.window is not None:
            parts.append((jnp.abs(query - key) < self.window)[None, None])
        if self.key_segments_BS is not None:
            parts.append((self.key_segments_BS != 0)[:, None, None, :])
            if self.query_segments_BT is not None:
                parts.append((self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None, :])[:, None])
        return functools.reduce(jnp.logical_and, parts) if parts else None
