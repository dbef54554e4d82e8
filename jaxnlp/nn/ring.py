"""Ring attention: context parallelism, where each device holds one share of a sequence.

Queries stay in place. Keys and values are sent around the ring of devices, one share at a time, and each device adds
the share it holds to a running softmax (Liu et al. 2023, arXiv:2310.01889, section 3). No device ever holds the keys
of the full sequence, or scores of more than `block` queries by one share of keys. The backward pass sends keys and
values around the ring once more, together with their gradients.
Shape legend: B batch, T queries and S keys of one device's share, H query heads, N key and value heads, K head size,
C pieces of the queries, R rows of one piece: queries times the query heads that share a key head, L full length.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.kernels import MIX, SCORES, SPREAD, AttentionKernel, Einsum, beside_queries, biased_scores, masked
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.partitioning import mesh_axes, num_shards, sharded_call
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.sharded_rng import bits_at, words_and_share
from jaxnlp.nn.trace_context import MeshAxes


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Ring(AttentionKernel):
    """`Einsum` over a sequence that the sharding rules split over devices (activation axis `length`).

    block: number of queries whose scores are in memory at a time (rounded down to a divisor of a device's share).

    Equals `Einsum` to rounding for every mask and for grouped heads; softmax statistics and sums are float32. Dropout
    draws the same bits as `Einsum`. A bias has shape (B or 1, H, L, L), so it takes the memory that the scores do not.
    Shares are contiguous. Under a causal mask all devices work in lockstep, so products with later keys, half of the
    total, are computed and discarded. With a causal window only the shares within its reach are sent, and a padding
    row gets the mean of some of the values instead of all. Falls back to `Einsum` if the length is not split, or if
    the keys have another length (decoding, most cross-attention).
    """

    features = ("dropout", "softcap", "bias")
    block: int = 512

    def check(self) -> None:
        if self.block < 1:
            raise FieldError("block", self.block, "expected a positive number of queries, as 512")

    def __call__(
        self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, bias=None, scale=None, softcap=None, dropout=None
    ):
        """(B, T, H, K) in the compute dtype. Raises UserError for a length that does not divide over the devices."""
        (B, length, H, _), ways = q_BTHK.shape, num_shards("length")
        if ways == 1 or k_BSNK.shape[1] != length:
            scores: dict[str, Any] = {"bias": bias, "scale": scale, "softcap": softcap, "dropout": dropout}
            return Einsum()(q_BTHK, k_BSNK, v_BSNK, mask, policy=policy, **scores)
        (axes,) = mesh_axes(("length",))
        if length % ways:
            raise UserError(
                f"attention Ring(): length {length} does not divide over the {ways} devices of mesh axis {axes!r}; "
                f"make data.seq_len a multiple of {ways}, or change sharding.mesh"
            )
        q_BTHK = q_BTHK * (q_BTHK.shape[-1] ** -0.5 if scale is None else scale)
        heads = mesh_axes(("batch", "length", "heads", "kv"))
        k_BSNK, v_BSNK, axis = beside_queries(q_BTHK, k_BSNK, v_BSNK)
        keys = mesh_axes(("batch", "length", axis, "kv"))
        share = length // ways
        piece = next(size for size in range(min(self.block, share), 0, -1) if share % size == 0)
        drop, dropped = None, None
        if dropout is not None:
            words, part = words_and_share(dropout[1])
            drop, dropped = (words, part * jnp.uint32(B)), _Dropped(dropout[0], H, length, heads[0], heads[2])
        ring = _Circle(axes, ways, _steps(mask, share, ways), piece, softcap, policy, dropped)
        mask = dataclasses.replace(mask, offset=jnp.asarray(mask.offset))
        q, k, v = (x.astype(policy.operand_dtype) for x in (q_BTHK, k_BSNK, v_BSNK))
        everywhere = None if drop is None else (PartitionSpec(), PartitionSpec())
        specs = (heads, keys, keys, _bias_spec(bias), _mask_specs(mask), everywhere)
        out_BTHK = sharded_call(functools.partial(_share, ring), specs, heads)(q, k, v, bias, mask, drop)
        return out_BTHK.astype(policy.dtype)


@dataclasses.dataclass(frozen=True)
class _Dropped:
    """Dropout of the attention weights. heads, length: full sizes. *_axes: mesh axes that split batch and heads."""

    rate: float
    heads: int
    length: int
    batch_axes: MeshAxes
    head_axes: MeshAxes


@dataclasses.dataclass(frozen=True)
class _Circle:
    """Static values. axes: mesh axes whose devices form the ring. ways: number of these devices. steps: shares that
    each device receives, its own included. piece: number of queries (t) in one piece."""

    axes: MeshAxes
    ways: int
    steps: int
    piece: int
    softcap: float | None
    policy: Policy
    dropped: _Dropped | None = None

    def shift(self, tree: Any, places: int = 1) -> Any:
        """Sends each array `places` devices forward on the ring."""
        return lax.ppermute(tree, self.axes, [(i, (i + places) % self.ways) for i in range(self.ways)])

    def source(self, step: Any) -> jax.Array:
        """The device whose keys this device holds after `step` shifts."""
        return (lax.axis_index(self.axes) - step) % self.ways


def _steps(mask: Mask, share: int, ways: int) -> int:
    """Number of shares that a query can attend to: all of them, or those within reach of a causal window."""
    aligned = isinstance(mask.offset, int) and mask.offset == 0
    if mask.window is None or not mask.causal or mask.prefix_B is not None or not aligned:
        return ways
    return min(ways, 1 + -(-(mask.window - 1) // share))


def _bias_spec(bias: jax.Array | None) -> PartitionSpec | None:
    if bias is None:
        return None
    batch, heads, length = mesh_axes(("batch", "heads", "length"))
    return PartitionSpec(batch if bias.shape[0] > 1 else None, heads, length, None)


def _mask_specs(mask: Mask) -> Mask:
    """The mask with a PartitionSpec in place of each array."""
    rows, batch = mesh_axes(("batch", "length")), mesh_axes(("batch",))
    specs: dict[str, Any] = {
        "offset": PartitionSpec(),
        "query_segments_BT": None if mask.query_segments_BT is None else rows,
        "key_segments_BS": None if mask.key_segments_BS is None else rows,
        "prefix_B": None if mask.prefix_B is None else batch,
    }
    return dataclasses.replace(mask, **specs)


def _share(ring: _Circle, q_BTHK, k_BSNK, v_BSNK, bias_BHTL, mask: Mask, drop):
    """The computation of one device: its queries, in C pieces of R rows each, against every share of the keys.

    Args:
        drop: (words of the dropout key, index of the call's first row), or None.
    """
    (B, T, H, K), N, t = q_BTHK.shape, k_BSNK.shape[2], ring.piece
    C, G = T // t, H // N
    q_CBNRK = q_BTHK.reshape(B, C, t, N, G, K).transpose(1, 0, 3, 4, 2, 5).reshape(C, B, N, G * t, K)
    if bias_BHTL is not None:
        b, L = bias_BHTL.shape[0], bias_BHTL.shape[3]
        bias_BHTL = bias_BHTL.reshape(b, N, G, C, t, L).transpose(3, 0, 1, 2, 4, 5).reshape(C, b, N, G * t, L)
    if mask.query_segments_BT is not None:
        mask = dataclasses.replace(mask, query_segments_BT=mask.query_segments_BT.reshape(B, C, t).swapaxes(0, 1))
    k_BNSK, v_BNSK = jnp.swapaxes(k_BSNK, 1, 2), jnp.swapaxes(v_BSNK, 1, 2)
    if ring.dropped is not None:
        words, row = drop
        at = lambda axes, size: jnp.uint32(size) * jnp.uint32(0 if axes is None else lax.axis_index(axes))
        drop = (words, row + at(ring.dropped.batch_axes, B), at(ring.dropped.head_axes, H))
    out_CBNRK: Any = _ring(ring, q_CBNRK, k_BNSK, v_BNSK, bias_BHTL, mask, drop)
    return out_CBNRK.reshape(C, B, N, G, t, K).transpose(1, 0, 4, 2, 3, 5).reshape(B, T, H, K)


def _allowed(ring: _Circle, mask: Mask, key_segments_BS, source, piece, rows: int, S: int):
    """Mask of piece `piece` of this device's queries against the keys of device `source`, by position in the full
    sequence: (B or 1, 1, R, S), or None if every pair is allowed."""
    segments_CBt, prefix_B, t = mask.query_segments_BT, mask.prefix_B, ring.piece
    local = dataclasses.replace(
        mask,
        query_segments_BT=None if segments_CBt is None else segments_CBt[piece],
        key_segments_BS=key_segments_BS,
        prefix_B=None if prefix_B is None else prefix_B - source * S,
        offset=mask.offset + (ring.source(0) - source) * S + piece * t,
    )
    allowed = local.dense(t, S)
    return None if allowed is None else jnp.tile(allowed, (1, 1, rows // t, 1))


def _dropout_factors(ring: _Circle, drop, source, piece, scores):
    """Dropout factors for the weights of these scores (B, N, R, S): 0 or 1 / (1 - rate); None without dropout.

    The bits are those that `jax.random.bernoulli` draws for the weights (B, H, L, L) of all devices.
    """
    if ring.dropped is None:
        return None
    (words, first_row, first_head), (B, N, R, S) = drop, scores.shape
    t, heads, length = ring.piece, ring.dropped.heads, ring.dropped.length
    row_B111 = first_row + jnp.arange(B, dtype=jnp.uint32)[:, None, None, None]
    head_NG1 = first_head + jnp.arange(N * R // t, dtype=jnp.uint32).reshape(N, R // t, 1)
    query_t = (ring.source(0) * S + piece * t).astype(jnp.uint32) + jnp.arange(t, dtype=jnp.uint32)
    key_S = (source * S).astype(jnp.uint32) + jnp.arange(S, dtype=jnp.uint32)
    place = _times((jnp.zeros_like(row_B111), row_B111), heads, head_NG1)
    place = _times(place, length, query_t)
    place = _times(tuple(x.reshape(B, N, R, 1) for x in place), length, key_S)
    uniform = (bits_at(words, *place) >> 9).astype(jnp.float32) * 2.0**-23
    return jnp.where(uniform < 1 - ring.dropped.rate, 1 / (1 - ring.dropped.rate), 0.0)


def _times(number, factor: int, addend):
    """number * factor + addend in 64-bit arithmetic. A number is a pair of 32-bit words, the high word first."""
    high, low = number
    (a, b), (c, d) = (low >> 16, low & 0xFFFF), (jnp.uint32(factor >> 16), jnp.uint32(factor & 0xFFFF))
    bottom = b * d
    middle = a * d + (bottom >> 16)
    carried = b * c + (middle & 0xFFFF)
    high = high * jnp.uint32(factor) + a * c + (middle >> 16) + (carried >> 16)
    low = (carried << 16) | (bottom & 0xFFFF)
    total = low + addend
    return high + (total < low).astype(jnp.uint32), total


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(ring: _Circle, q_CBNRK, k_BNSK, v_BNSK, bias_CBNRL, mask: Mask, drop):
    """softmax(q k^T + bias) v over all keys of the ring, (C, B, N, R, K) float32.

    Saved for the backward pass: the arguments, the result, and the maximum and sum of exponentials of each row.
    """
    return _ring_fwd(ring, q_CBNRK, k_BNSK, v_BNSK, bias_CBNRL, mask, drop)[0]


def _ring_fwd(ring, q_CBNRK, k_BNSK, v_BNSK, bias_CBNRL, mask, drop):
    policy, S = ring.policy, k_BNSK.shape[2]

    def fold(step, state, keys_values):
        """Updates the running softmax of each piece with the keys that this device now holds."""
        k, v, segments = keys_values
        source = ring.source(step)

        def piece(x):
            i, q, bias, (out, top, total) = x
            scores = _block_scores(ring, q, k, bias, source)[0]
            scores = masked(scores, _allowed(ring, mask, segments, source, i, q.shape[2], S))
            new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
            weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
            total = total * shrink + weights.sum(axis=-1, keepdims=True)
            weights = _dropped(weights, _dropout_factors(ring, drop, source, i, scores))
            return out * shrink + policy.dot(weights, v, MIX), new_top, total

        return lax.map(piece, (jnp.arange(len(q_CBNRK)), q_CBNRK, bias_CBNRL, state))

    def one_step(carry, step):
        state, keys_values = carry
        onward = ring.shift(keys_values)  # does not wait for the products, so both run at once
        return (fold(step, state, keys_values), onward), None

    zeros = jnp.zeros(q_CBNRK.shape, jnp.float32)
    state = (zeros, zeros[..., :1] - jnp.inf, zeros[..., :1])
    keys_values, last_step = (k_BNSK, v_BNSK, mask.key_segments_BS), ring.steps - 1
    (state, keys_values), _ = lax.scan(one_step, (state, keys_values), jnp.arange(last_step))
    out, top, total = fold(last_step, state, keys_values)
    out = out / total
    return out, (q_CBNRK, k_BNSK, v_BNSK, bias_CBNRL, mask, drop, out, top, total)


def _ring_bwd(ring, residuals, d_out):
    q_CBNRK, k_BNSK, v_BNSK, bias_CBNRL, mask, drop, out, top, total = residuals
    policy, S = ring.policy, k_BNSK.shape[2]
    row = (d_out * out).sum(axis=-1, keepdims=True)

    def add(step, grads, keys_values):
        """Adds the gradients from the keys that this device now holds. Their gradients travel with them."""
        k, v, segments = keys_values
        source = ring.source(step)

        def piece(d_keys, x):
            i, q, bias, top, total, row, d_out, (d_q, d_bias) = x
            scores, slope = _block_scores(ring, q, k, bias, source)
            scores = masked(scores, allowed := _allowed(ring, mask, segments, source, i, q.shape[2], S))
            weights = jnp.exp(scores - top) / total
            factors = _dropout_factors(ring, drop, source, i, scores)
            d_scores = weights * (_dropped(policy.dot(d_out, v, SCORES), factors) - row)
            d_scores = d_scores if allowed is None else jnp.where(allowed, d_scores, 0.0)
            d_scores = d_scores if slope is None else d_scores * slope
            d_k, d_v = d_keys
            d_keys = d_k + policy.dot(d_scores, q, SPREAD), d_v + policy.dot(_dropped(weights, factors), d_out, SPREAD)
            if d_bias is not None:
                d_share = d_scores if bias.shape[0] > 1 else d_scores.sum(axis=0, keepdims=True)
                d_bias = lax.dynamic_update_slice_in_dim(d_bias, d_share, source * S, axis=3)
            return d_keys, (d_q + policy.dot(d_scores, k, MIX), d_bias)

        d_queries, d_keys = grads
        pieces = (jnp.arange(len(q_CBNRK)), q_CBNRK, bias_CBNRL, top, total, row, d_out, d_queries)
        d_keys, d_queries = lax.scan(piece, d_keys, pieces)
        return d_queries, d_keys

    def one_step(carry, step):
        grads, keys_values = carry
        onward = ring.shift(keys_values)
        d_queries, d_keys = add(step, grads, keys_values)
        return ((d_queries, ring.shift(d_keys)), onward), None

    zeros = lambda x: None if x is None else jnp.zeros(x.shape, jnp.float32)
    grads = ((zeros(q_CBNRK), zeros(bias_CBNRL)), (zeros(k_BNSK), zeros(v_BNSK)))
    keys_values, last_step = (k_BNSK, v_BNSK, mask.key_segments_BS), ring.steps - 1
    (grads, keys_values), _ = lax.scan(one_step, (grads, keys_values), jnp.arange(last_step))
    (d_q, d_bias), d_keys = add(last_step, grads, keys_values)
    d_k, d_v = ring.shift(d_keys, -last_step)  # back to the device that owns the keys
    d_bias = None if d_bias is None else d_bias.astype(bias_CBNRL.dtype)
    return d_q.astype(q_CBNRK.dtype), d_k.astype(k_BNSK.dtype), d_v.astype(v_BNSK.dtype), d_bias, None, None


_ring.defvjp(_ring_fwd, _ring_bwd)


def _dropped(x, factors):
    return x if factors is None else x * factors


def _block_scores(ring: _Circle, q_BNRK, k_BNSK, bias_BNRL, source):
    """Scores (B, N, R, S) before masking, and the derivative of the soft cap (None without a soft cap)."""
    S = k_BNSK.shape[2]
    bias = None if bias_BNRL is None else lax.dynamic_slice_in_dim(bias_BNRL, source * S, S, axis=3)
    scores = biased_scores(q_BNRK, k_BNSK, bias, ring.softcap, ring.policy)
    return scores, None if ring.softcap is None else 1.0 - (scores / ring.softcap) ** 2
