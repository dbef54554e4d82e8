"""Adapters: trained bottleneck layers after frozen sublayers (Houlsby et al. 2019, arXiv:1902.00751).

    h + W_up act(W_down h + b_down) + b_up

An adapter has 2 m d + d + m parameters, for a bottleneck of m units and a model width of d. W_up is initialised with
zeros, so that the model initially equals the base; Houlsby et al. initialise it near zero.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn.linear import matmul
from jaxnlp.nn.mlp import ACTIVATIONS
from jaxnlp.peft.method import AdapterParam, PEFTMethod
from jaxnlp.peft.targets import Target, choose

HOULSBY = ("attention", "mlp")
"""Two adapters per layer: after attention and after the feed-forward layer."""

PFEIFFER = ("mlp",)
"""One adapter per layer, after the feed-forward layer (Pfeiffer et al. 2021, arXiv:2005.00247)."""


@dataclasses.dataclass(kw_only=True)
class Adapter(PEFTMethod):
    """Bottleneck adapters on the outputs of sublayers, before the residual connection.

    targets: patterns of sublayers: HOULSBY, PFEIFFER or others. bottleneck: m. activation: a name in
        `nn.mlp.ACTIVATIONS`.
    """

    targets: tuple[str, ...] = HOULSBY
    bottleneck: int = 64
    activation: str = "gelu"

    computation_fields = ("activation",)

    def check(self) -> None:
        super().check()
        if not self.targets:
            raise FieldError("targets", self.targets, "expected patterns of sublayers, as ('attention', 'mlp')")
        if self.bottleneck < 1:
            raise FieldError("bottleneck", self.bottleneck, "expected a positive number of units")
        if self.activation not in ACTIVATIONS:
            raise FieldError("activation", self.activation, f"expected one of {', '.join(ACTIVATIONS)}")

    def choose(self, targets: list[Target]) -> list[Target]:
        serves = lambda t: t.outputs is not None and len(t.outputs) == 3
        return choose(targets, self.targets, serves, "a sublayer that returns (batch, length, width)", "peft.targets")

    def leaves(self, target: Target) -> dict[str, AdapterParam]:
        assert target.outputs is not None
        D, M = target.outputs[-1], self.bottleneck
        zeros = lambda *shape: lambda key, weights: jnp.zeros(shape)
        draw = lambda key, weights: jax.random.normal(key, (D, M)) / math.sqrt(D)
        return {
            "adapter_down": AdapterParam((D, M), ("embed", "rank"), draw),
            "adapter_down_bias": AdapterParam((M,), ("rank",), zeros(M)),
            "adapter_up": AdapterParam((M, D), ("rank", "embed"), zeros(M, D)),
            "adapter_up_bias": AdapterParam((D,), ("norm",), zeros(D)),
        }

    def call(self, leaves, target, call, fn, args, kwargs):
        out = fn(*args, **kwargs)
        h = out[0] if isinstance(out, tuple) else out
        policy = call.policy(h.dtype)
        z = matmul(h, leaves["adapter_down"], policy).astype(h.dtype) + leaves["adapter_down_bias"].astype(h.dtype)
        z = ACTIVATIONS[self.activation](z)
        y = h + matmul(z, leaves["adapter_up"], policy).astype(h.dtype) + leaves["adapter_up_bias"].astype(h.dtype)
        return (y, *out[1:]) if isinstance(out, tuple) else y
