"""Logical axes: of parameters, of activations, and calls that must see one device's share of an array.

A model names the axes of its parameters and of its activations, never those of a mesh. Names of
activations mean something only inside `axis_rules(rules)` under a mesh of several devices;
elsewhere `constrain` and `sharded_call` change nothing. An axis that no rule names is an error,
never replicated in silence.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnlp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """Tables in force while a model is traced: logical axis -> mesh axes or None.

    activations: of the axes in `constrain`. used: of parameters where they are used, None: as they come.
    gradients: of their gradients as they leave the backward pass, None: as `used`.
    """

    activations: Mapping[str, Any]
    used: Mapping[str, Any] | None = None
    gradients: Mapping[str, Any] | None = None


WITHIN = ("batch", "length", "activation")  # what attention and feed-forward layers read
BETWEEN = ("batch", "residual", "activation")  # the residual stream

_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


def parameter(
    module: nn.Module, name: str, init: Callable, axes: tuple[str, ...], shape: tuple[int, ...], dtype: str
) -> jax.Array:
    """A parameter of a Linen module, with the logical name of each axis.

    Under a layout whose parameters are split over axes that split the batch too (ZeRO 3) it is gathered here, inside
    the layer that uses it, and its gradient is laid out here on the way back, so that no more than a layer is ever
    whole.
    """
    if module.has_variable("params", name):
        # As `module.param` does, which traces `init` for its shape each time: a tenth of what tracing a model takes.
        value = cast(jax.Array, nn.meta.unbox(module.get_variable("params", name)))
        if jnp.shape(value) != shape:
            raise flax.errors.ScopeParamShapeError(name, "/".join(module.path), jnp.shape(value), shape)
    else:
        boxed = nn.with_logical_partitioning(init, axes)
        value = cast(jax.Array, module.param(name, boxed, shape, jnp.dtype(dtype)))
    return value if module.is_initializing() else placed(value, axes)


def placed(value: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A parameter, laid out as it is where it is used; see `parameter`."""
    layout = _layout.get()
    if layout is None or layout.used is None or _one_device():
        return value
    used, kept = (_spec(axes, table) for table in (layout.used, layout.gradients or layout.used))
    return value if kept is None or used is None else _laid_out(value, used, kept)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _laid_out(x: jax.Array, there: PartitionSpec, back: PartitionSpec) -> jax.Array:
    """x laid out as `there`; its cotangent as `back`."""
    return jax.lax.with_sharding_constraint(x, there)


_laid_out.defvjp(
    lambda x, there, back: (_laid_out(x, there, back), None),
    lambda there, back, _, g: (jax.lax.with_sharding_constraint(g, back),),
)


@contextlib.contextmanager
def axis_rules(
    rules: Mapping[str, Any], used: Mapping[str, Any] | None = None, gradients: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Within the block, activations' logical axes resolve by `rules`, parameters' as `Layout` says."""
    token = _layout.set(Layout(rules, used, gradients))
    try:
        yield
    finally:
        _layout.reset(token)


def mesh_axes(names: tuple[str, ...]) -> PartitionSpec:
    """The mesh axes of an activation with these logical axes; replicated where no rules are active."""
    layout = _layout.get()
    if layout is None:
        return PartitionSpec()
    for name in names:
        if name not in layout.activations:
            raise UserError(
                f"activation axis {name!r} has no rule; add it to sharding.activations, with None to replicate"
            )
    return _spec(names, layout.activations) or PartitionSpec()


def split(name: str) -> int:
    """Over how many devices an activation's logical axis is split here."""
    spec = mesh_axes((name,))
    if _one_device() or not spec:
        return 1
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in _tuple(spec[0]))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """x, laid out over the mesh as its logical axes say; an axis named None is left to the compiler.

    Raises:
        UserError: an axis without a rule, or one whose size does not divide over its mesh axes.
    """
    if _one_device() or _layout.get() is None:
        return x
    spec = []
    for size, name in zip(x.shape, names, strict=True):
        if name is None:
            spec.append(PartitionSpec.UNCONSTRAINED)
            continue
        (axes,) = mesh_axes((name,)) or (None,)
        if size % (ways := split(name)):
            raise UserError(
                f"sharding.activations[{name!r}]={axes!r}: an activation has {name}={size}, which does not divide over "
                f"{ways} devices; change that size or the mesh, or set the rule to None"
            )
        spec.append(axes)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def enter(x_BTD: jax.Array) -> jax.Array:
    """What a sublayer reads, off the residual stream: where that is split over tensor too, gathered here."""
    x_BTD = constrain(x_BTD, "batch", "residual", "activation")
    return _laid_out(x_BTD, mesh_axes(WITHIN), mesh_axes(BETWEEN)) if _residual_differs() else x_BTD


def leave(y_BTD: jax.Array) -> jax.Array:
    """What a sublayer adds to the residual stream, laid out as that is."""
    return _laid_out(y_BTD, mesh_axes(BETWEEN), mesh_axes(WITHIN)) if _residual_differs() else y_BTD


def by_heads(x_BTHK: jax.Array, axis: str) -> jax.Array:
    """Queries, or keys or values (`axis` "heads" or "kv_heads"): split by heads, and their cotangents too."""
    return constrain(x_BTHK, "batch", "length", axis, "kv") if _residual_differs() else x_BTHK


def sharded_call(fn: Callable, in_specs: tuple, out_spec: PartitionSpec) -> Callable:
    """fn, called on each device's share of its arguments (a Mosaic kernel cannot be split by the compiler)."""
    if _one_device() or _layout.get() is None:
        return fn
    return jax.shard_map(fn, in_specs=in_specs, out_specs=out_spec, check_vma=False)


def gathers_parameters() -> bool:
    """Whether parameters may be laid out otherwise where they are used than as they are kept."""
    layout = _layout.get()
    return layout is not None and layout.used is not None and not _one_device()


def _one_device() -> bool:
    return jax.sharding.get_abstract_mesh().size <= 1


def _residual_differs() -> bool:
    return mesh_axes(("residual",)) != mesh_axes(("length",))


def _tuple(axes: Any) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def _spec(names: tuple[str | None, ...], table: Mapping[str, Any]) -> PartitionSpec | None:
    """The mesh axes by a table, without those a surrounding `shard_map` has taken; None for a name it lacks."""
    known = [name for name in names if name is not None and name in table]
    if len(known) < len(names):
        return None
    taken = set(jax.sharding.get_abstract_mesh().manual_axes)
    kept = [tuple(axis for axis in _tuple(table[name]) if axis not in taken) for name in known]
    return PartitionSpec(*(axes[0] if len(axes) == 1 else (axes or None) for axes in kept))
