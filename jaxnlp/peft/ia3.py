"""(IA)^3: learned scales of keys, values and feed-forward hidden units (Liu et al. 2022, arXiv:2205.05638)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnlp.errors import FieldError, UserError
from jaxnlp.peft.method import AdapterParam, PEFTMethod
from jaxnlp.peft.targets import KERNEL, Target, choose, matches

IN, OUT = "ia3_in", "ia3_out"


@dataclasses.dataclass(kw_only=True)
class IA3(PEFTMethod):
    """Element-wise scales, initialised to 1, of the outputs or inputs of linear layers.

    outputs, inputs: patterns of linear layers whose outputs, or inputs, are scaled. The defaults are the paper's: keys,
        values, and the input of the feed-forward layer's last projection.
    """

    outputs: tuple[str, ...] = ("key", "value")
    inputs: tuple[str, ...] = ("down",)

    def check(self) -> None:
        super().check()
        if not self.outputs and not self.inputs:
            raise FieldError("outputs", self.outputs, "expected patterns of linear maps, here or in inputs")

    def choose(self, targets: list[Target]) -> list[Target]:
        serves, expected = (lambda t: t.num_in is not None), "a linear map"
        out = choose(targets, self.outputs, serves, expected, "peft.outputs")
        into = choose(targets, self.inputs, serves, expected, "peft.inputs")
        return [t for t in targets if t in out or t in into]

    def leaves(self, target: Target) -> dict[str, AdapterParam]:
        kernel, at, n = target.parameters[KERNEL], target.layers, target.num_in
        assert n is not None
        shape, axes = kernel.shape[at:], kernel.axes[at:]
        ones = lambda shape: lambda key, weights: jnp.ones(shape)
        params = {}
        if any(matches(target.name, p) for p in self.inputs):
            params[IN] = AdapterParam(shape[:n], axes[:n], ones(shape[:n]))
        if any(matches(target.name, p) for p in self.outputs):
            params[OUT] = AdapterParam(shape[n:], axes[n:], ones(shape[n:]))
        return params

    def call(self, leaves, target, call, fn, args, kwargs):
        x, *rest = args
        if IN in leaves:
            x = (x * leaves[IN]).astype(x.dtype)
        y = fn(x, *rest, **kwargs)
        return (y * leaves[OUT]).astype(y.dtype) if OUT in leaves else y

    def merged(self, target, weights, leaves):
        return _scaled(target, weights, leaves)

    def check_unmerged(self, name, leaves):
        """Raises UserError for a scale of 0, which has no inverse. Traced values are unchecked: 0 gives infinities."""
        for leaf, x in leaves.items():
            if not isinstance(x, Tracer) and (zeros := int(np.sum(np.asarray(x) == 0))):
                raise UserError(f"IA3(): {name}/{leaf} has {zeros} scales of 0, which have no inverse; keep the base")

    def unmerged(self, target, weights, leaves):
        return _scaled(target, weights, jax.tree.map(lambda scale: 1 / scale, leaves))


def _scaled(target: Target, weights: dict[str, jax.Array], leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    kernel, new = weights[KERNEL].astype(jnp.float32), {}
    if IN in leaves:
        kernel = kernel * leaves[IN].reshape(*leaves[IN].shape, *[1] * (kernel.ndim - leaves[IN].ndim))
    if OUT in leaves:
        kernel = kernel * leaves[OUT]
        if "bias" in weights:
            new["bias"] = weights["bias"].astype(jnp.float32) * leaves[OUT]
    return {KERNEL: kernel, **new}
