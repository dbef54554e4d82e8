"""Normalisation of the last axis: LayerNorm and RMSNorm.

Each norm is a small config object, chosen in a model's config, that builds a Linen module.
Shape legend: D features.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnlp.errors import FieldError
from jaxnlp.nn.partitioning import parameter
from jaxnlp.nn.policy import Policy


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Norm:
    """Base class of the norms. epsilon: added to the variance or the mean square, before the square root."""

    epsilon: float = 1e-5

    def check(self) -> None:
        if not self.epsilon > 0:
            raise FieldError("epsilon", self.epsilon, "expected a positive number, as 1e-5")

    def build(self, policy: Policy, name: str | None = None) -> nn.Module:
        """The Linen module, called as `module(x)` with x (..., D)."""
        raise TypeError(f"{type(self).__name__}: a norm must define build()")


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class LayerNorm(Norm):
    """(x - mean) / sqrt(var + epsilon) * scale + bias (Ba et al. 2016, arXiv:1607.06450)."""

    use_bias: bool = True

    def build(self, policy: Policy, name: str | None = None) -> nn.Module:
        return _Norm(self.epsilon, True, self.use_bias, policy, name=name)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class RMSNorm(Norm):
    """x / sqrt(mean(x^2) + epsilon) * scale (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    epsilon: float = 1e-6

    def build(self, policy: Policy, name: str | None = None) -> nn.Module:
        return _Norm(self.epsilon, False, False, policy, name=name)


class _Norm(nn.Module):
    """Statistics in float32, result in the compute dtype. Parameters: `scale` and, if used, `bias`, each (D,)."""

    epsilon: float
    centre: bool
    use_bias: bool
    policy: Policy

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype, shape = self.policy.param_dtype, (x.shape[-1],)
        scale = parameter(self, "scale", nn.initializers.ones, ("norm",), shape, dtype)
        y = normalise(x, scale.astype(jnp.float32), self.epsilon, self.centre)
        if self.use_bias:
            bias = parameter(self, "bias", nn.initializers.zeros, ("norm",), shape, dtype)
            y = y + bias.astype(jnp.float32)
        return y.astype(self.policy.dtype)


def normalise(x: jax.Array, scale_D: jax.Array, epsilon: float, centre: bool) -> jax.Array:
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in float32; with `centre`, of x minus its mean.

    The backward pass is written by hand (two means per row): autodiff of mean and variance makes several more passes
    over memory for the same values. The only array of the size of x that it saves is x, which in bfloat16 is half the
    size of a float32 copy.
    """
    return _normalise(x, scale_D, epsilon, centre)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _normalise(x, scale_D, epsilon, centre):
    return _normalise_fwd(x, scale_D, epsilon, centre)[0]


def _normalise_fwd(x, scale_D, epsilon, centre):
    moved, mean = _centred(x, None, centre)
    inverse = lax.rsqrt((moved * moved).mean(-1, keepdims=True) + epsilon)
    return moved * inverse * scale_D, (x, mean, inverse, scale_D)


def _normalise_bwd(epsilon, centre, residuals, dy):
    x, mean, inverse, scale_D = residuals
    unit = _centred(x, mean, centre)[0] * inverse
    d_unit = dy * scale_D
    dx = d_unit - unit * (d_unit * unit).mean(-1, keepdims=True)
    if centre:
        dx = dx - d_unit.mean(-1, keepdims=True)
    return (inverse * dx).astype(x.dtype), (dy * unit).sum(tuple(range(dy.ndim - 1)))


def _centred(x, mean, centre):
    """(x minus its mean, the mean), float32. mean: None computes it. Without `centre`: (x in float32, None)."""
    x = x.astype(jnp.float32)
    if not centre:
        return x, None
    mean = x.mean(-1, keepdims=True) if mean is None else mean
    return x - mean, mean


_normalise.defvjp(_normalise_fwd, _normalise_bwd)
