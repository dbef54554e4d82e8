"""Numerics policy: the dtypes of parameters, activations and matrix-product operands."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnlp.nn import checks

FLOATS = ("float32", "bfloat16", "float16")
WEIGHT_GRADIENTS = ("auto", "rows", "plain")
WEIGHT_LAYOUTS = ("input_major", "output_major")


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Policy:
    """The dtypes of a model. Logits and losses are always float32.

    param_dtype: dtype of the parameters, from `init` and through the optimizer's updates.
    compute_dtype: dtype of activations and, if `matmul_dtype` is None, of matrix-product operands.
    matmul_dtype: dtype that the operands of matrix products are rounded to; products are always
        accumulated in float32. `compute_dtype="float32", matmul_dtype="bfloat16"` is the fastest
        mixed precision on CPUs with bf16 units.
    weight_gradient: how the gradient of a weight is computed. "plain" is the form of autodiff.
        "rows" contracts both operands over their rows with the shorter side first, with which
        XLA's CPU backend runs a step up to 1.4x faster. "auto" is "rows" in a program compiled
        for a CPU and "plain" elsewhere. See `nn/linear.py`.
    weight_layout: "output_major" computes products with few rows as (W^T x^T)^T, the fastest form
        on a CPU for weights stored output-major. Generation on a CPU sets it and transposes the
        weights itself (`inference/layout.py`); keep the default for training.
    """

    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    matmul_dtype: str | None = None
    weight_gradient: str = "auto"
    weight_layout: str = "input_major"

    def check(self) -> None:
        """Raises FieldError for an unknown dtype or option."""
        checks.one_of(self, "param_dtype", FLOATS)
        checks.one_of(self, "compute_dtype", FLOATS)
        if self.matmul_dtype is not None:
            checks.one_of(self, "matmul_dtype", FLOATS)
        checks.one_of(self, "weight_gradient", WEIGHT_GRADIENTS)
        checks.one_of(self, "weight_layout", WEIGHT_LAYOUTS)

    @property
    def dtype(self) -> Any:
        """Dtype of activations."""
        return jnp.dtype(self.compute_dtype)

    @property
    def operand_dtype(self) -> Any:
        """Dtype that the operands of a matrix product are rounded to."""
        return jnp.dtype(self.matmul_dtype or self.compute_dtype)

    def dot(self, x: jax.Array, y: jax.Array, dims: Any, dtype: Any = jnp.float32) -> jax.Array:
        """`lax.dot_general` of the rounded operands, accumulated in float32 and returned in `dtype`.

        If `dtype` is the operand dtype, the product itself returns it. Partial sums on several devices are then
        exchanged in that dtype, and the partial sums of products that are added together are exchanged once.
        """
        x, y = x.astype(self.operand_dtype), y.astype(self.operand_dtype)
        plain = functools.partial(lax.dot_general, dimension_numbers=dims, preferred_element_type=jnp.float32)
        by_rows = self.operand_dtype == jnp.bfloat16 and dims[0][0] != (x.ndim - 1,)
        narrow = jnp.dtype(dtype) == self.operand_dtype != jnp.float32
        if not by_rows and not narrow:
            return plain(x, y).astype(dtype)
        on_cpu = functools.partial(_dot_by_rows, dims) if by_rows else plain
        off_cpu = functools.partial(plain, preferred_element_type=dtype) if narrow else plain
        return lax.platform_dependent(
            x, y, cpu=lambda x, y: on_cpu(x, y).astype(dtype), default=lambda x, y: off_cpu(x, y).astype(dtype)
        )

    def operand(self, x: jax.Array) -> jax.Array:
        """x rounded for `dot`, and for bfloat16 on a CPU in row-major order. For the results of a transpose."""
        x = x.astype(self.operand_dtype)
        if self.operand_dtype == jnp.bfloat16:
            return lax.platform_dependent(x, cpu=by_rows, default=lambda x: x)
        return x


def by_rows(x: jax.Array) -> jax.Array:
    """x in row-major order in memory.

    XLA's CPU backend has fast bfloat16 products (three times float32 with AMX) only for row-major
    operands with the left one contracted over its last axis. It silently converts others to
    float32. A transpose counts as column-major until its result is materialised: the reshape
    materialises it, and the barrier keeps XLA from cancelling the two reshapes.
    """
    return lax.optimization_barrier(x[..., None]).reshape(x.shape)


def _dot_by_rows(dims, x, y):
    (contract, _), (batch, _) = dims
    free = [i for i in range(x.ndim) if i not in (*contract, *batch)]
    x = by_rows(x.transpose(*batch, *free, *contract))
    dims = ((tuple(range(x.ndim - len(contract), x.ndim)), dims[0][1]), (tuple(range(len(batch))), dims[1][1]))
    return lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)
