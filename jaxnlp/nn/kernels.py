"""Attention kernels: implementations of multi-head attention, chosen in a model's config.

A kernel is a small config object, called as `kernel(q, k, v, mask, policy=..., ...)`. `scale`
multiplies the scores (None: 1/sqrt(K)); `bias` (B or 1, H, T, S) is added to them. All kernels
compute the same result to rounding (tested); they differ in speed, memory and platform.
Shape legend: B batch, T query length, S key length, D model, H query heads, N key and value
heads, K head size.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.partitioning import constrain, mesh_axes, num_shards, sharded_call
from jaxnlp.nn.policy import Policy

SCORES = (((3,), (3,)), ((0, 1), (0, 1)))  # R x K and S x K to R x S, for `Policy.dot`
MIX = (((3,), (2,)), ((0, 1), (0, 1)))  # R x S and S x K to R x K
SPREAD = (((2,), (2,)), ((0, 1), (0, 1)))  # R x S and R x K to S x K
LANES = 128
PLATFORMS = ("cpu", "gpu", "tpu")
MASKED = -1e30  # finite, so that a row with every key masked gives a mean and not NaN


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class AttentionKernel:
    """Base class of the kernels.

    features: which of "dropout" (of the attention weights), "softcap" and "bias" (of the scores) the kernel supports.
        A model config that needs an unsupported feature is rejected.
    platforms: platforms that the kernel runs on.
    interpret: True runs the kernel in Pallas interpret mode, on any platform, for tests.
    """

    features: ClassVar[tuple[str, ...]] = ()
    interpret = False

    @property
    def platforms(self) -> tuple[str, ...]:
        return PLATFORMS

    def runs_on(self, platform: str) -> bool:
        return self.interpret or platform in self.platforms

    def __call__(
        self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, bias=None, scale=None, softcap=None, dropout=None
    ) -> jax.Array:
        """(B, T, H, K) in the compute dtype. dropout: None, or (rate, key)."""
        raise TypeError(f"{type(self).__name__}: an attention kernel must define __call__()")


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Einsum(AttentionKernel):
    """softmax(q k^T / sqrt(K)) v by two matrix products (Vaswani et al. 2017, equation 1). Runs on every platform."""

    features = ("dropout", "softcap", "bias")

    def __call__(self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, dropout=None, **scores):
        dense = mask.dense(q_BTHK.shape[1], k_BSNK.shape[1])
        return attend(q_BTHK, k_BSNK, v_BSNK, dense, policy=policy, dropout=dropout, **scores)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Blocked(AttentionKernel):
    """`Einsum` in blocks of queries; each block attends only to the keys up to its own end.

    Skips the half of the scores that a causal mask would discard: faster than `Einsum` on a CPU
    for sequences of several blocks, and uses less memory. The loop is unrolled. Falls back to
    `Einsum` for other masks (non-causal, prefix LM), for T != S, and for a single block.

    block: number of queries in a block.
    """

    features = ("dropout", "softcap", "bias")
    block: int = 64

    def check(self) -> None:
        if self.block < 1:
            raise FieldError("block", self.block, "expected a positive number of queries, as 64")

    def __call__(self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, dropout=None, bias=None, **scores):
        length = q_BTHK.shape[1]
        full = not mask.causal or mask.prefix_B is not None or k_BSNK.shape[1] != length
        if full or length <= self.block:
            return Einsum()(q_BTHK, k_BSNK, v_BSNK, mask, policy=policy, dropout=dropout, bias=bias, **scores)
        # The keys are split once, so that their gradients are sums of pieces and not of arrays padded to full length.
        stops = [*range(self.block, length, self.block), length]
        sizes = [stop - start for start, stop in zip([0, *stops], stops, strict=False)]
        queries, keys, values = (lax.split(x, sizes, axis=1) for x in (q_BTHK, k_BSNK, v_BSNK))
        out = []
        for i, (stop, query) in enumerate(zip(stops, queries, strict=True)):
            dense = mask.rows(stop - sizes[i], stop).dense(sizes[i], stop)
            drop = dropout and (dropout[0], jax.random.fold_in(dropout[1], i))
            key, value = (jnp.concatenate(x[: i + 1], axis=1) for x in (keys, values))
            part = None if bias is None else bias[:, :, stop - sizes[i] : stop, :stop]
            out.append(attend(query, key, value, dense, policy=policy, dropout=drop, bias=part, **scores))
        return jnp.concatenate(out, axis=1)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class DotProduct(AttentionKernel):
    """`jax.nn.dot_product_attention`: XLA's implementation, or cuDNN's flash attention on a GPU.

    implementation: "xla", "cudnn" (GPU with float16 or bfloat16 operands), or None for JAX's choice.
    """

    features = ("bias",)
    implementation: str | None = None

    @property
    def platforms(self) -> tuple[str, ...]:
        return ("gpu",) if self.implementation == "cudnn" else PLATFORMS

    def check(self) -> None:
        if self.implementation not in (None, "xla", "cudnn"):
            raise FieldError("implementation", self.implementation, "expected 'xla', 'cudnn' or None")

    def __call__(
        self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, bias=None, scale=None, softcap=None, dropout=None
    ):
        aligned = mask.conditions == {"causal"} and q_BTHK.shape[1] == k_BSNK.shape[1]
        dense = None if aligned else mask.dense(q_BTHK.shape[1], k_BSNK.shape[1])
        if self.implementation == "cudnn":  # cuDNN needs keys that are sharded like the queries
            k_BSNK, v_BSNK, _ = beside_queries(q_BTHK, k_BSNK, v_BSNK)
        q, k, v = (x.astype(policy.operand_dtype) for x in (q_BTHK, k_BSNK, v_BSNK))
        kernel: Any = self.implementation
        out = jax.nn.dot_product_attention(q, k, v, bias, dense, scale=scale, is_causal=aligned, implementation=kernel)
        return out.astype(policy.dtype)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Flash(AttentionKernel):
    """Pallas splash attention for TPU: scores stay in on-chip memory, and fully masked blocks are skipped.

    block: the block size is the largest multiple of 128 up to `block` that divides the length.
    interpret: run in Pallas interpret mode on any platform (slow; for tests).
    The sequence length must be a multiple of 128. Falls back to `Einsum` for T != S: decoding
    with a cache has one query row, and nothing to fuse.
    """

    features = ("softcap",)
    block: int = 512
    interpret: bool = False

    @property
    def platforms(self) -> tuple[str, ...]:
        return ("tpu",)

    def check(self) -> None:
        if self.block < 128 or self.block % 128:
            raise FieldError("block", self.block, "expected a multiple of 128, as 512")

    def __call__(
        self, q_BTHK, k_BSNK, v_BSNK, mask: Mask, *, policy: Policy, bias=None, scale=None, softcap=None, dropout=None
    ):
        length = q_BTHK.shape[1]
        if k_BSNK.shape[1] != length:
            return Einsum()(q_BTHK, k_BSNK, v_BSNK, mask, policy=policy, scale=scale, softcap=softcap)
        if length % 128:
            raise UserError(
                f"attention Flash(): sequence length {length} is not a multiple of 128; change data.seq_len"
            )
        if num_shards("length") > 1:
            raise UserError("attention Flash(): does not support a sharded sequence (mesh.sequence > 1); use Ring()")
        if mask.prefix_B is not None:
            raise UserError("attention Flash(): does not support a prefix mask; use Einsum()")
        k_BSNK, v_BSNK, axis = beside_queries(q_BTHK, k_BSNK, v_BSNK)
        q, k, v = (jnp.swapaxes(x.astype(policy.operand_dtype), 1, 2) for x in (q_BTHK, k_BSNK, v_BSNK))
        q = (q.astype(jnp.float32) * (q.shape[-1] ** -0.5 if scale is None else scale)).astype(q.dtype)
        keys_BT, queries_BT = mask.key_segments_BS, mask.query_segments_BT
        if keys_BT is None:
            keys_BT = jnp.ones((q.shape[0], length), jnp.int32)
        if queries_BT is None:
            queries_BT, keys_BT = jnp.ones_like(keys_BT), (keys_BT != 0).astype(jnp.int32)
        run = functools.partial(_splash, self.block, self.interpret, mask.causal, mask.window, softcap)
        heads, keys = ("batch", "heads", "length", "kv"), ("batch", axis, "length", "kv")
        rows = mesh_axes(("batch", "length"))
        specs = (mesh_axes(heads), mesh_axes(keys), mesh_axes(keys), rows, rows)
        out_BHTK = sharded_call(run, specs, mesh_axes(heads))(q, k, v, queries_BT, keys_BT)
        return jnp.swapaxes(out_BHTK, 1, 2).astype(policy.dtype)


def beside_queries(q_BTHK, k_BSNK, v_BSNK) -> tuple[jax.Array, jax.Array, str]:
    """Keys and values sharded so that each device has the heads that its query heads attend to, and their head axis.

    If the sharding rules split query and key heads alike, the heads are returned as they are, with axis "kv_heads".
    Otherwise they are repeated, one for each query head, with axis "heads".

    Raises:
        UserError: the number of heads is not divisible by the number of devices.
    """
    axis, ways = "kv_heads", (num_shards("heads"), num_shards("kv_heads"))
    if mesh_axes(("heads",)) != mesh_axes(("kv_heads",)) and ways != (1, 1):
        axis, groups = "heads", q_BTHK.shape[2] // k_BSNK.shape[2]
        k_BSNK, v_BSNK = (jnp.repeat(x, groups, axis=2) for x in (k_BSNK, v_BSNK))
    k_BSNK, v_BSNK = (constrain(x, None, None, axis, None) for x in (k_BSNK, v_BSNK))
    return k_BSNK, v_BSNK, axis


def _splash(block, interpret, causal, window, softcap, q_BHTK, k_BNTK, v_BNTK, queries_BT, keys_BT):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, length = q_BHTK.shape[1:3]
    head_mask = (splash.CausalMask if causal else splash.FullMask)((length, length))
    if window is not None:
        head_mask = head_mask & splash.LocalMask((length, length), (window - 1, window - 1), 0)
    size = next(b for b in range(min(block, length), 0, -128) if length % b == 0)
    sizes = splash.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )

    def one_row(q, k, v, s, t):
        # Created here, since the kernel holds arrays of the current trace and the backward pass is another trace.
        kernel = splash.make_splash_mha(
            mask=splash.MultiHeadMask([head_mask] * heads),
            block_sizes=sizes,
            attn_logits_soft_cap=softcap,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return kernel(q, k, v, splash.SegmentIds(s, t))

    groups = heads // k_BNTK.shape[1]
    k, v = (jnp.repeat(x, groups, axis=1) for x in (k_BNTK, v_BNTK))
    return in_full_lanes(jax.vmap(one_row), q_BHTK, k, v, queries_BT, keys_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_full_lanes(run: Any, *arrays: jax.Array) -> jax.Array:
    """run(*arrays), with the residuals saved in rows of 128 numbers.

    TPU arrays are tiled in 128 lanes, so the residuals of an attention kernel would take twice their size if the last
    axis were a head size of 64.
    """
    return run(*arrays)


def _in_full_lanes_fwd(run, *arrays):
    out, pull_back = jax.vjp(run, *arrays)
    return out, jax.tree.map(_Lanes.of, pull_back)


def _in_full_lanes_bwd(_, residuals, d_out):
    return jax.tree.map(_Lanes.array, residuals, is_leaf=lambda x: isinstance(x, _Lanes))(d_out)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["shape"])
@dataclasses.dataclass
class _Lanes:
    rows: jax.Array
    shape: tuple[int, ...]

    @classmethod
    def of(cls, x: jax.Array) -> "_Lanes":
        narrow = x.ndim > 1 and x.shape[-1] < LANES and x.size % LANES == 0
        return cls(x.reshape(-1, LANES) if narrow else x, x.shape)

    def array(self) -> jax.Array:
        return self.rows.reshape(self.shape)


in_full_lanes.defvjp(_in_full_lanes_fwd, _in_full_lanes_bwd)


def attend(
    q_BTHK, k_BSNK, v_BSNK, allowed, *, policy: Policy, scale=None, bias=None, softcap=None, dropout=None
) -> jax.Array:
    """Scaled dot-product attention with grouped heads; scores and softmax in float32.

    Args:
        allowed: boolean, broadcastable to (B, 1, T, S), or None.
        scale: factor of the scores; None: 1/sqrt(K).
        bias: (B or 1, H, T, S), added to the scores.
        softcap: c gives c tanh(scores / c) (Gemma 2, arXiv:2408.00118, section 2).
        dropout: (rate, key) drops attention weights.

    Returns:
        (B, T, H, K) in the compute dtype.
    """
    B, T, H, K = q_BTHK.shape
    q, k, v, allowed, bias = _grouped(q_BTHK, k_BSNK, v_BSNK, allowed, bias, scale, policy)
    if softcap is None and dropout is None and bias is None:
        out_BNRK: jax.Array = _attend(q, k, v, allowed, policy)  # pyright: ignore[reportAssignmentType]
    else:
        weights = _weights(q, k, allowed, bias, softcap, policy)
        if dropout is not None:
            weights = _drop(weights, *dropout)
        out_BNRK = policy.dot(weights, v, MIX)
    return jnp.swapaxes(out_BNRK.reshape(B, H, T, K), 1, 2).astype(policy.dtype)


def attention_weights(q_BTHK, k_BSNK, mask: Mask, *, policy: Policy, scale=None, bias=None, softcap=None) -> jax.Array:
    """The attention weights (B, H, T, S), float32."""
    B, T, H, _ = q_BTHK.shape
    allowed = mask.dense(T, k_BSNK.shape[1])
    q, k, _, allowed, bias = _grouped(q_BTHK, k_BSNK, k_BSNK, allowed, bias, scale, policy)
    return _weights(q, k, allowed, bias, softcap, policy).reshape(B, H, T, -1)


def _grouped(q_BTHK, k_BSNK, v_BSNK, allowed, bias, scale, policy):
    """Moves heads before length, and merges the query heads that share a key head into the rows R of one product."""
    B, T, H, K = q_BTHK.shape
    N = k_BSNK.shape[2]
    scaled = q_BTHK * (K**-0.5 if scale is None else scale)
    q_BNRK = jnp.swapaxes(scaled, 1, 2).reshape(B, N, H // N * T, K)
    q, k, v = (policy.operand(x) for x in (q_BNRK, jnp.swapaxes(k_BSNK, 1, 2), jnp.swapaxes(v_BSNK, 1, 2)))
    if allowed is not None and H != N:
        allowed = jnp.tile(allowed, (1, 1, H // N, 1))
    if bias is not None:
        bias = bias.reshape(bias.shape[0], N, H // N * T, -1)
    return q, k, v, allowed, bias


def _weights(q_BNRK, k_BNSK, allowed, bias, softcap, policy):
    return jax.nn.softmax(masked(biased_scores(q_BNRK, k_BNSK, bias, softcap, policy), allowed), axis=-1)


def biased_scores(q_BNRK, k_BNSK, bias, softcap, policy: Policy) -> jax.Array:
    """q k^T plus the bias, then the soft cap: (B, N, R, S) float32. The queries must already be scaled."""
    scores = policy.dot(q_BNRK, k_BNSK, SCORES)
    if bias is not None:
        scores = scores + bias
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def masked(scores, allowed):
    """Scores with `MASKED` where `allowed` is False; None allows all."""
    return scores if allowed is None else jnp.where(allowed, scores, MASKED)


def _drop(x, rate, key):
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BNRK, k_BNSK, v_BNSK, allowed, policy):
    """softmax(q k^T) v. The backward pass computes the row term from the output (R x K), not the weights (R x S)."""
    return _attend_fwd(q_BNRK, k_BNSK, v_BNSK, allowed, policy)[0]


def _attend_fwd(q, k, v, allowed, policy):
    weights = masked(policy.dot(q, k, SCORES), allowed)
    weights = jnp.exp(weights - weights.max(axis=-1, keepdims=True))
    weights = weights * (1.0 / weights.sum(axis=-1, keepdims=True))
    weights = weights.astype(policy.operand_dtype)
    out = policy.dot(weights, v, MIX)
    return out, (q, k, v, weights, out)


def _attend_bwd(policy, residuals, d_out):
    q, k, v, weights, out = residuals
    row = (d_out * out).sum(axis=-1, keepdims=True)
    d_out = policy.operand(d_out)
    d_v = policy.dot(weights, d_out, SPREAD)
    d_weights = policy.dot(d_out, v, SCORES)
    d_scores = weights.astype(jnp.float32) * (d_weights - row)
    d_q = policy.dot(d_scores, k, MIX)
    d_k = policy.dot(d_scores, q, SPREAD)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_attend_fwd, _attend_bwd)
