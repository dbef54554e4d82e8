"""Counting floating-point operations in a traced function."""

import math
from collections.abc import Iterator
from typing import Any

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr


def jaxpr_flops(jaxpr: Jaxpr | ClosedJaxpr) -> float:
    """FLOPs of the matrix products and convolutions of a jaxpr, summed over all devices: two per multiply-add.

    The body of a scan counts once per iteration, the body of a `shard_map` once per device that it is mapped over, a
    kernel's body once per point of its grid, and a conditional as its most expensive branch. A while loop counts once,
    since its trip count is unknown at trace time.
    """
    total = 0.0
    for eqn in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = _aval(eqn.invars[0]).shape
            total += 2.0 * _aval(eqn.outvars[0]).size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, features = _aval(eqn.invars[1]), params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * _aval(eqn.outvars[0]).size * kernel.size / kernel.shape[features]
        elif name == "cond":
            total += max(map(jaxpr_flops, params["branches"]))
        else:
            total += _times(name, params) * sum(map(jaxpr_flops, _inner(params)))
    return total


def _aval(variable: Any) -> ShapedArray:
    assert isinstance(variable.aval, ShapedArray)
    return variable.aval


def _times(name: str, params: dict[str, Any]) -> int:
    """How often a primitive runs the jaxprs in its parameters."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        axes = params.get("newly_manual_axes", params.get("manual_axes", ()))  # the name depends on the release
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
    return 1


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Jaxpr | ClosedJaxpr):
                yield item
