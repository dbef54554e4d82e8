"""Numerics policy: which dtype holds parameters, activations and the operands of products."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnlp.errors import FieldError

FLOATS = ("float32", "bfloat16", "float16")
WEIGHT_GRADIENTS = ("auto", "rows", "plain")
WEIGHT_LAYOUTS = ("input_major", "output_major")


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Policy:
    """Dtypes of a model's numbers. Logits and losses are always float32.

    param_dtype: what `init` makes and the optimizer updates.
    compute_dtype: activations and, unless `product_dtype` says otherwise, matrix products.
    product_dtype: dtype the operands of matrix products are rounded to; products are always
        accumulated in float32. `compute_dtype="float32",
        product_dtype="bfloat16"` is mixed precision as CPUs with bf16 units run it fastest.
    weight_gradient: how the gradient of a weight is written. "plain" is what autodiff
        makes; "rows" contracts both operands over their rows with the shorter side first,
        which XLA's CPU backend runs up to 1.4x faster a step; "auto" is "rows" where the
        program is compiled for a CPU and "plain" elsewhere. See `nn/linear.py`.
    weight_layout: "output_major" computes products with few rows as (W^T x^T)^T, the fastest way a
        CPU can read weights that lie so in memory. Generation on a CPU sets it, with weights
        it has laid out (`generate/layout.py`); for training leave it.
    """

    param_dtype: str = "float32"
    compute_dtype: str = "float32"
    product_dtype: str | None = None
    weight_gradient: str = "auto"
    weight_layout: str = "input_major"

    def check(self) -> None:
        """Raises FieldError for an unknown dtype or form."""
        for field in ("param_dtype", "compute_dtype", "product_dtype"):
            value = getattr(self, field)
            if value not in FLOATS and not (field == "product_dtype" and value is None):
                raise FieldError(field, value, f"expected one of {', '.join(FLOATS)}")
        if self.weight_gradient not in WEIGHT_GRADIENTS:
            raise FieldError("weight_gradient", self.weight_gradient, f"expected one of {', '.join(WEIGHT_GRADIENTS)}")
        if self.weight_layout not in WEIGHT_LAYOUTS:
            raise FieldError("weight_layout", self.weight_layout, f"expected one of {', '.join(WEIGHT_LAYOUTS)}")

    @property
    def dtype(self) -> Any:
        """Dtype of activations."""
        return jnp.dtype(self.compute_dtype)

    @property
    def operand_dtype(self) -> Any:
        """Dtype the operands of a matrix product are rounded to."""
        return jnp.dtype(self.product_dtype or self.compute_dtype)

    def dot(self, x: jax.Array, y: jax.Array, dims: Any) -> jax.Array:
        """`lax.dot_general` of the rounded operands; accumulated and returned in float32."""
        x, y = x.astype(self.operand_dtype), y.astype(self.operand_dtype)
        return lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)

    def einsum(self, spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
        """`jnp.einsum` of the rounded operands; the result is float32."""
        x, y = x.astype(self.operand_dtype), y.astype(self.operand_dtype)
        return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
