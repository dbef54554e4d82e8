"""Logical axes: of parameters, of activations, and calls that must see one device's share of an array.

A model names the axes of its parameters and of its activations, never those of a mesh. Names of
activations mean something only inside `axis_rules(rules)` under a mesh of several devices;
elsewhere `constrain` and `sharded_call` change nothing. An axis that no rule names is an error,
never replicated in silence.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnlp.errors import UserError


def parameter(module: nn.Module, name: str, init: Callable, axes: tuple[str, ...], shape: tuple[int, ...], dtype: str):
    """A parameter of a Linen module, with the logical name of each axis."""
    boxed = nn.with_logical_partitioning(init, axes)
    return cast(jax.Array, module.param(name, boxed, shape, jnp.dtype(dtype)))


@contextlib.contextmanager
def axis_rules(rules: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, activations' logical axes resolve by `rules` (logical axis -> mesh axis or None)."""
    with nn.logical_axis_rules(tuple(rules.items())):
        yield


def mesh_axes(names: tuple[str, ...]) -> PartitionSpec:
    """The mesh axes of an activation with these logical axes; replicated where no rules are active."""
    rules = dict(nn.get_logical_axis_rules())
    if not rules:
        return PartitionSpec()
    for name in names:
        if name not in rules:
            raise UserError(
                f"activation axis {name!r} has no rule; add it to sharding.activations, with None to replicate"
            )
    return PartitionSpec(*(rules[name] for name in names))


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """x, laid out over the mesh as its logical axes say."""
    if jax.sharding.get_abstract_mesh().size <= 1 or not nn.get_logical_axis_rules():
        return x
    return jax.lax.with_sharding_constraint(x, mesh_axes(names))


def sharded_call(fn: Callable, in_specs: tuple, out_spec: PartitionSpec) -> Callable:
    """fn, called on each device's share of its arguments (a Mosaic kernel cannot be split by the compiler)."""
    if jax.sharding.get_abstract_mesh().size <= 1 or not nn.get_logical_axis_rules():
        return fn
    return jax.shard_map(fn, in_specs=in_specs, out_specs=out_spec, check_vma=False)
