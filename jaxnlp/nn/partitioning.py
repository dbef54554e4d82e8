"""Logical axes of parameters and activations, and calls that must see one device's shard of an array.

A model names the axes of its parameters and activations and never a mesh axis. The names of activations take effect
only within `axis_rules(...)` under a mesh of several devices; elsewhere `constrain` and `sharded_call` change nothing.
An axis that no rule names is an error and is never silently replicated.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import cast

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnlp.errors import UserError
from jaxnlp.nn import trace_context
from jaxnlp.nn.trace_context import Layout, MeshAxes, Rules

WITHIN = ("batch", "length", "activation")  # inputs of attention and feed-forward layers
BETWEEN = ("batch", "residual", "activation")  # the residual stream


def parameter(
    module: nn.Module, name: str, init: Callable, axes: tuple[str, ...], shape: tuple[int, ...], dtype: str
) -> jax.Array:
    """A parameter of a Linen module, with the logical name of each axis.

    Under ZeRO-3 parameters are sharded over axes that shard the batch too. The parameter is then all-gathered here,
    inside the layer that uses it, and its gradient is resharded here in the backward pass, so that at most one layer
    is gathered at a time.
    """
    if module.has_variable("params", name):
        # `module.param` would trace `init` for its shape each time: a tenth of the time to trace a model.
        value = cast(jax.Array, nn.meta.unbox(module.get_variable("params", name)))
        if jnp.shape(value) != shape:
            raise flax.errors.ScopeParamShapeError(name, "/".join(module.path), jnp.shape(value), shape)
    else:
        boxed = nn.with_logical_partitioning(init, axes)
        value = cast(jax.Array, module.param(name, boxed, shape, jnp.dtype(dtype)))
    return value if module.is_initializing() else gather_for_compute(value, axes)


def gather_for_compute(value: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The parameter resharded for use (all-gathered under ZeRO-3); see `parameter`."""
    layout = trace_context.current().layout
    if layout is None or layout.compute_rules is None or _one_device():
        return value
    spec = _spec(axes, layout.compute_rules)
    gradient_spec = _spec(axes, layout.gradients or layout.compute_rules)
    return value if gradient_spec is None or spec is None else _resharded(value, spec, gradient_spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _resharded(x: jax.Array, spec: PartitionSpec, cotangent_spec: PartitionSpec) -> jax.Array:
    """x with sharding `spec`; its cotangent has `cotangent_spec`."""
    return jax.lax.with_sharding_constraint(x, spec)


_resharded.defvjp(
    lambda x, spec, cotangent_spec: (_resharded(x, spec, cotangent_spec), None),
    lambda spec, cotangent_spec, _, g: (jax.lax.with_sharding_constraint(g, cotangent_spec),),
)


@contextlib.contextmanager
def axis_rules(
    activations: Rules,
    compute_rules: Rules | None = None,
    gradients: Rules | None = None,
) -> Iterator[None]:
    """Within the block the logical axes of activations and parameters resolve by these tables; see `Layout`."""
    with trace_context.replaced(layout=Layout(activations, compute_rules, gradients)):
        yield


def mesh_axes(names: tuple[str, ...]) -> PartitionSpec:
    """Mesh axes of an activation with these logical axes; replicated outside `axis_rules`."""
    layout = trace_context.current().layout
    if layout is None:
        return PartitionSpec()
    for name in names:
        if name not in layout.activations:
            raise UserError(
                f"activation axis {name!r} has no rule; add it to sharding.activations, with None to replicate"
            )
    return _spec(names, layout.activations) or PartitionSpec()


def num_shards(name: str) -> int:
    """Number of shards of an activation's logical axis."""
    spec = mesh_axes((name,))
    if _one_device() or not spec:
        return 1
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in _tuple(spec[0]))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """x sharded by its logical axes; an axis named None is left to the compiler.

    Raises:
        UserError: an axis without a rule, or one whose size is not a multiple of its number of shards.
    """
    if _one_device() or trace_context.current().layout is None:
        return x
    spec = []
    for size, name in zip(x.shape, names, strict=True):
        if name is None:
            spec.append(PartitionSpec.UNCONSTRAINED)
            continue
        (axes,) = mesh_axes((name,)) or (None,)
        if size % (shards := num_shards(name)):
            raise UserError(
                f"sharding.activations[{name!r}]={axes!r}: an activation has {name}={size}, which does not divide over "
                f"{shards} devices; change that size or the mesh, or set the rule to None"
            )
        spec.append(axes)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def gather_sequence(x_BTD: jax.Array) -> jax.Array:
    """The input of a sublayer: the residual stream, all-gathered along the length where that is sharded further."""
    x_BTD = constrain(x_BTD, "batch", "residual", "activation")
    return _resharded(x_BTD, mesh_axes(WITHIN), mesh_axes(BETWEEN)) if _residual_differs() else x_BTD


def scatter_sequence(y_BTD: jax.Array) -> jax.Array:
    """The output of a sublayer, resharded as the residual stream (reduce-scattered under tensor parallelism)."""
    return _resharded(y_BTD, mesh_axes(BETWEEN), mesh_axes(WITHIN)) if _residual_differs() else y_BTD


def shard_heads(x_BTHK: jax.Array, axis: str) -> jax.Array:
    """Constrains queries (`axis` "heads"), or keys or values ("kv_heads"), to be sharded over heads."""
    return constrain(x_BTHK, "batch", "length", axis, "kv") if _residual_differs() else x_BTHK


def sharded_call(fn: Callable, in_specs: tuple, out_spec: PartitionSpec) -> Callable:
    """fn applied to each device's shard of its arguments (the compiler cannot partition a Mosaic kernel)."""
    if _one_device() or trace_context.current().layout is None:
        return fn
    return jax.shard_map(fn, in_specs=in_specs, out_specs=out_spec, check_vma=False)


def gathers_parameters() -> bool:
    """Whether parameters are resharded for use (ZeRO-3)."""
    layout = trace_context.current().layout
    return layout is not None and layout.compute_rules is not None and not _one_device()


def _one_device() -> bool:
    return jax.sharding.get_abstract_mesh().size <= 1


def _residual_differs() -> bool:
    return mesh_axes(("residual",)) != mesh_axes(("length",))


def _tuple(axes: MeshAxes) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def _spec(names: tuple[str | None, ...], table: Rules) -> PartitionSpec | None:
    """Mesh axes by a table, without the manual axes of a surrounding `shard_map`; None if the table lacks a name."""
    ruled = [name for name in names if name is not None and name in table]
    if len(ruled) < len(names):
        return None
    manual = set(jax.sharding.get_abstract_mesh().manual_axes)
    auto = [tuple(axis for axis in _tuple(table[name]) if axis not in manual) for name in ruled]
    return PartitionSpec(*(axes[0] if len(axes) == 1 else (axes or None) for axes in auto))
