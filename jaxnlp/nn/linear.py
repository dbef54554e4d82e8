"""Linear maps: the matrix product, and the Linen modules built on it.

Shape legend: B batch, T length, D model (input features), V vocabulary, R rows (batch and
length flattened).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from jaxnlp.nn.partitioning import parameter
from jaxnlp.nn.policy import Policy

Initializer = Callable[..., jax.Array]

PRODUCT = "product"  # the name of a linear map's output in remat policies
FEW_ROWS = 64  # up to this many rows a product is bound by reading the weights


def matmul(
    x: jax.Array, w: jax.Array, policy: Policy, transpose_w: bool = False, dtype: Any = jnp.float32
) -> jax.Array:
    """x @ w, or x @ w.T with `transpose_w`: operands in `policy.operand_dtype`, accumulated in float32.

    Args:
        x: (..., D).
        w: (D, F), or (F, D) with `transpose_w`. D or F may be several axes.
        dtype: dtype of the result.

    Returns:
        (..., F), with F as one axis. The derivative is exact; `policy.weight_gradient` only
        chooses how the weight's gradient is computed.
    """
    return _matmul(x, w, policy, transpose_w, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _matmul(x, w, policy, transpose_w, dtype):
    w = _matrix(w, x.shape[-1], transpose_w)
    if policy.weight_layout == "output_major" and x.size // x.shape[-1] <= FEW_ROWS:
        # Without the barrier XLA would transpose the product back.
        y_FR = lax.optimization_barrier(
            policy.dot(w, x.reshape(-1, x.shape[-1]), _contract(1 if transpose_w else 0, 1), dtype)
        )
        return y_FR.T.reshape(*x.shape[:-1], -1)
    return policy.dot(x, w, _contract(x.ndim - 1, 1 if transpose_w else 0), dtype)


def _matmul_fwd(x, w, policy, transpose_w, dtype):
    # A frozen weight needs no gradient, so its input is not saved and no product is computed. The weight is saved in
    # its own shape: a reshaped one would be a copy of all stacked layers at once.
    y = _matmul(x.value, w.value, policy, transpose_w, dtype)
    return y, (x.value if w.perturbed else None, w.value, jnp.zeros((0, x.value.shape[-1]), x.value.dtype))


def _matmul_bwd(policy, transpose_w, dtype, residuals, dy):
    x, w, like_x = residuals
    if isinstance(dy, SymbolicZero):
        return None, None
    matrix = _matrix(w, like_x.shape[-1], transpose_w)
    dx = policy.dot(dy, matrix, _contract(dy.ndim - 1, 0 if transpose_w else 1), like_x.dtype)
    if x is None:
        return dx, None
    return dx, _weight_gradient(policy, w.dtype, *((dy, x) if transpose_w else (x, dy))).reshape(w.shape)


def _matrix(w, inputs: int, transpose_w: bool):
    return w if w.ndim == 2 else w.reshape((-1, inputs) if transpose_w else (inputs, -1))


_matmul.defvjp(_matmul_fwd, _matmul_bwd, symbolic_zeros=True)


def _weight_gradient(policy: Policy, dtype, left, right):
    plain = functools.partial(_weight_gradient_plain, policy, dtype)
    rows = functools.partial(_weight_gradient_rows, policy, dtype)
    if policy.weight_gradient == "auto":
        return lax.platform_dependent(left, right, cpu=rows, default=plain)
    return (rows if policy.weight_gradient == "rows" else plain)(left, right)


def _contract(a: int, b: int) -> Any:
    return (((a,), (b,)), ((), ()))


def _weight_gradient_plain(policy: Policy, dtype, left, right):
    # Contracts batch and length as two axes: merging them would all-gather a length that is split over devices.
    rows = tuple(range(left.ndim - 1))
    return policy.dot(left, right, ((rows, rows), ((), ())), dtype)


def _weight_gradient_rows(policy: Policy, dtype, left, right):
    """left.T @ right over their rows, computed with the shorter side first.

    XLA's CPU backend is fast when the result has fewer rows than columns. If the sides are
    swapped, the final transpose is behind a barrier: XLA would otherwise fold it back into the
    product and choose the slow form again. In bfloat16 `Policy.dot` transposes the left side
    before the product in either order, so swapping pays only if `left` is over 4 times as long.
    """
    left_RA, right_RB = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
    max_rows = right_RB.shape[1] * (4 if policy.operand_dtype == jnp.bfloat16 else 1)
    if left_RA.shape[1] <= max_rows:
        return policy.dot(left_RA, right_RB, _contract(0, 0), dtype)
    return lax.optimization_barrier(policy.dot(right_RB, left_RA, _contract(0, 0))).T.astype(dtype)


class Linear(nn.Module):
    """y = x W + b over the last `num_in` axes of x.

    Attributes:
        features: shape of the output axes, as (heads, head_size) or (features,).
        axes: logical axis names of the kernel, input axes first.
        num_in: number of trailing axes of x that are contracted.
        dtype: dtype of the result; None: the compute dtype.

    Parameters: `kernel` of shape (*inputs, *features), or with `weight_layout="output_major"` the matrix
    (features, inputs); `bias` of shape `features`.
    """

    features: tuple[int, ...]
    axes: tuple[str, ...]
    policy: Policy
    num_in: int = 1
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.normal(0.02)
    dtype: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[x.ndim - self.num_in :]
        dtype, result = self.policy.param_dtype, jnp.dtype(self.dtype or self.policy.dtype)
        lead, D, F = x.shape[: x.ndim - self.num_in], math.prod(inputs), math.prod(self.features)
        flat = x.reshape(*lead, D)
        if self.policy.weight_layout == "output_major":
            kernel = parameter(self, "kernel", self.kernel_init, ("outputs", "inputs"), (F, D), dtype)
            y = matmul(flat, kernel, self.policy, True, result)
        else:
            kernel = parameter(self, "kernel", self.kernel_init, self.axes, (*inputs, *self.features), dtype)
            # Partial sums are exchanged between devices in the rounded dtype. Maps from `embed` have no partial sums:
            # there a product that rounds would make XLA's TPU backend copy full stacks of heads to a new layout.
            product = jnp.dtype(jnp.float32) if self.axes[0] == "embed" else result
            y = matmul(flat, kernel, self.policy, dtype=product).astype(result)
        y = checkpoint_name(y, PRODUCT).reshape(*lead, *self.features)
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, self.axes[self.num_in :], self.features, dtype)
            y = y + bias.astype(y.dtype)
        return y


class Embed(nn.Module):
    """An embedding table, looked up by id; with tied embeddings it is also the output map.

    Parameter: `embedding` of shape (vocab_size, embed_dim).
    """

    vocab_size: int
    embed_dim: int
    policy: Policy
    axes: tuple[str, str] = ("vocab", "embed")
    embedding_init: Initializer = nn.initializers.normal(0.02)

    def setup(self):
        shape = (self.vocab_size, self.embed_dim)
        self.embedding = parameter(self, "embedding", self.embedding_init, self.axes, shape, self.policy.param_dtype)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        """Rows of the table, (B, T, D), in the compute dtype. An id outside [0, V) gives NaN."""
        rows = self.embedding.at[ids_BT].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows.astype(self.policy.dtype)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """x W^T, (B, T, V), float32."""
        return matmul(x_BTD, self.embedding, self.policy, True)
