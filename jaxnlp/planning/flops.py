"""Floating-point operations, counted in traces: of a step as it runs, and of one in which some leaves are trained."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxnlp.objectives.objective import prepared
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.experiment import abstract_batch, flops_per_token, trunk, with_trunk
from jaxnlp.training.step.program import Program, build


def products(jaxpr: Any) -> float:
    """Operations of the matrix products and convolutions of a jaxpr, on all devices: two for each multiply-add.

    The body of a scan counts as often as it turns, a `shard_map`'s for each device that it is cut over, a kernel's for
    each point of its grid, and of a condition the dearest branch. A while loop, whose turns a trace does not know,
    counts once.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2.0 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, features = eqn.invars[1].aval, params["dimension_numbers"].rhs_spec[0]
            total += 2.0 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[features]
        elif name == "cond":
            total += max(map(products, params["branches"]))
        else:
            total += _times(name, params) * sum(map(products, _inner(params)))
    return total


def _times(name: str, params: dict[str, Any]) -> int:
    """How often an operation runs what it holds."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        axes = params.get("newly_manual_axes", params.get("manual_axes", ()))  # its name moved between releases
        return math.prod(params["mesh"].shape[axis] for axis in axes)
    if name == "pallas_call":
        return math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
    return 1


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, Jaxpr | ClosedJaxpr):
                yield one


def step_flops(program: Program) -> float:
    """Operations of the model in a step, on all devices, with nothing computed twice.

    The model's own figure (`flops_per_token`), which is three forward passes. Where only some leaves are trained that
    is too many, for what is not trained has no gradient: there the derivative is traced, and counted.
    """
    e = program.experiment
    if program.tuning is None:
        return flops_per_token(e) * e.data.batch_size * e.data.seq_len
    if getattr(trunk(e.model), "remat", "none") != "none":
        e = dataclasses.replace(e, model=with_trunk(e.model, remat="none"))
    device = [program.mesh.devices.flat[0]]
    alone = build(dataclasses.replace(e, sharding=Sharding().on()), device, only_traced=True)
    batch = abstract_batch(e, e.data.batch_size // e.accum_steps)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def gradients(state, batch, key):
        whole = lambda params: dataclasses.replace(state, params=params).model
        loss = lambda params: e.objective.loss(alone.apply, whole(params), prepared(e.objective, batch), key)[0]
        return jax.grad(loss)(state.params)

    with alone.context():
        return e.accum_steps * products(jax.make_jaxpr(gradients)(alone.abstract, batch, key))
