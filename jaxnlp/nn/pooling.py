"""Pooling of token states into one vector for each sequence.

Shape legend: B batch, T length, D features.
"""

import jax
import jax.numpy as jnp


def mean_pool(x_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
    """Mean over real tokens, (B, D), float32; zeros for a row without any (Reimers and Gurevych 2019, section 3)."""
    weight_BT1 = (real_BT != 0).astype(jnp.float32)[..., None]
    # Padding may hold NaN, and 0 * NaN is NaN.
    total_BD = jnp.where(weight_BT1 > 0, x_BTD.astype(jnp.float32), 0.0).sum(1)
    return total_BD / jnp.maximum(weight_BT1.sum(1), 1.0)


def unit(x_BD: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """x divided by its Euclidean norm, so that dot products are cosine similarities."""
    return x_BD / jnp.maximum(jnp.linalg.norm(x_BD, axis=-1, keepdims=True), epsilon)
