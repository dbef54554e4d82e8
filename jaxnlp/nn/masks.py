"""Who may attend to whom.

Shape legend: B batch, T query length, S key length.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_segments_BT", "key_segments_BS", "offset"],
    meta_fields=["causal"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """The conditions a query-key pair must meet, kept apart so that each kernel can use its own form.

    causal: a key no later than the query, by place in the sequence.
    query_segments_BT, key_segments_BS: both in the same segment, and that segment not 0
        (0 is padding). None: no such condition.
    offset: place of the first query among the keys: 0 in training, the number of keys
        already cached when decoding.
    """

    causal: bool = True
    query_segments_BT: jax.Array | None = None
    key_segments_BS: jax.Array | None = None
    offset: jax.Array | int = 0

    def rows(self, start: int, stop: int) -> "Mask":
        """The mask of queries start..stop against keys 0..stop: one block of rows of a causal mask."""
        q, k = self.query_segments_BT, self.key_segments_BS
        return Mask(
            causal=self.causal,
            query_segments_BT=None if q is None else q[:, start:stop],
            key_segments_BS=None if k is None else k[:, :stop],
            offset=start,
        )

    def dense(self, query_len: int, key_len: int) -> jax.Array | None:
        """Boolean (B or 1, 1, T, S), True where attention is allowed; None where all of it is."""
        allowed = None
        if self.causal:
            query = self.offset + jnp.arange(query_len)[:, None]
            allowed = (jnp.arange(key_len)[None, :] <= query)[None, None]
        if self.query_segments_BT is not None and self.key_segments_BS is not None:
            same = self.query_segments_BT[:, :, None] == self.key_segments_BS[:, None, :]
            same = (same & (self.key_segments_BS != 0)[:, None, :])[:, None]
            allowed = same if allowed is None else allowed & same
        return allowed
