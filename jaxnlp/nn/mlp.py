"""The feed-forward layer: one hidden layer with an activation, plain or gated.

Each form is a small config object that builds its Linen module.
Shape legend: B batch, T length, D model, F feed-forward.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxnlp.errors import FieldError
from jaxnlp.nn.linear import Initializer, Linear
from jaxnlp.nn.partitioning import gather_sequence, scatter_sequence
from jaxnlp.nn.policy import Policy

Activation = Callable[[jax.Array], jax.Array]


def from_input(value: Activation, slope: Activation) -> Activation:
    """The activation `value` with the derivative `slope`, both functions of the input. Only the input is saved for the
    backward pass: recomputing the rest is cheaper than writing it to memory and reading it back. For GELU's tanh form,
    autodiff saves five arrays."""
    activation = jax.custom_vjp(value)
    activation.defvjp(lambda x: (value(x), x), lambda x, dy: (slope(x) * dy,))
    return activation


def _gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), exact (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    Computed with erf, as in PyTorch, and not with erfc, as in `jax.nn.gelu`: twice as fast on a CPU, and equal to
    rounding.
    """
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_slope(x: jax.Array) -> jax.Array:
    cdf = 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))
    return cdf + x * jnp.exp(-0.5 * x * x) * (2 * math.pi) ** -0.5


def _gelu_tanh_slope(x: jax.Array) -> jax.Array:
    """The tanh form is x s, with s = sigmoid(2u) and u = sqrt(2/pi) (x + c x^3); its derivative is s + x s (1 - s) 2u'.
    JAX writes both with 1 + tanh(u), which has lost all its digits where x < -5."""
    twice, c, squared = 2 * (2 / math.pi) ** 0.5, 0.044715, x * x
    s = jax.nn.sigmoid(twice * x * (1 + c * squared))
    return s * (1 + x * (1 - s) * twice * (1 + 3 * c * squared))


def _silu_slope(x: jax.Array) -> jax.Array:
    s = jax.nn.sigmoid(x)
    return s * (1 + x * (1 - s))


gelu = from_input(_gelu, _gelu_slope)
gelu_tanh = from_input(functools.partial(jax.nn.gelu, approximate=True), _gelu_tanh_slope)
silu = from_input(jax.nn.silu, _silu_slope)

INIT = nn.initializers.normal(0.02)

ACTIVATIONS = {
    "gelu_tanh": gelu_tanh,
    "gelu": gelu,
    "relu": nn.relu,
    "silu": silu,
}


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class FeedForward:
    """Base class of the feed-forward layers.

    activation: a key of `ACTIVATIONS`.
    gated: the hidden layer is the product of two maps of the input, one of them through the activation.
    """

    activation: str = "gelu_tanh"
    gated = False

    def check(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise FieldError("activation", self.activation, f"expected one of {', '.join(ACTIVATIONS)}")

    def build(
        self,
        *,
        hidden: int,
        dim: int,
        use_bias: bool,
        out_init: Initializer,
        policy: Policy,
        name: str,
        in_init: Initializer = INIT,
    ) -> nn.Module:
        """The Linen module, called as `module(x_BTD)`.

        Args:
            hidden: F, units of the hidden layer.
            dim: D.
            in_init, out_init: initialisers of the kernels into and out of the hidden layer.
        """
        return _MLP(hidden, dim, self.activation, self.gated, use_bias, in_init, out_init, policy, name=name)


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class MLP(FeedForward):
    """W2 act(W1 x) (Vaswani et al. 2017, equation 2). GPT-2's activation is "gelu_tanh"."""


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class GatedMLP(FeedForward):
    """W2 (act(Wg x) * W1 x): SwiGLU with "silu", GEGLU with "gelu" (Shazeer 2020, arXiv:2002.05202)."""

    activation: str = "silu"
    gated = True


class _MLP(nn.Module):
    """Parameters: `up` (D, F), `gate` (D, F) if gated, `down` (F, D)."""

    hidden: int
    dim: int
    activation: str
    gated: bool
    use_bias: bool
    in_init: Initializer
    out_init: Initializer
    policy: Policy

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        def up(name):
            axes = ("embed", "mlp")
            linear = Linear(
                (self.hidden,), axes, self.policy, use_bias=self.use_bias, kernel_init=self.in_init, name=name
            )
            return checkpoint_name(linear(x_BTD), "mlp_hidden")

        act, x_BTD = ACTIVATIONS[self.activation], gather_sequence(x_BTD)
        h_BTF = act(up("gate")) * up("up") if self.gated else act(up("up"))
        down = Linear(
            (self.dim,), ("mlp", "embed"), self.policy, use_bias=self.use_bias, kernel_init=self.out_init, name="down"
        )
        return checkpoint_name(scatter_sequence(down(h_BTF)), "mlp_out")
