"""Rule tables from logical axes to mesh axes, and their strict resolution.

A table is a dict such as `{"embed": "fsdp", "mlp": "tensor", "norm": None}`. A value is a mesh axis, a tuple of mesh
axes, or None to replicate. A missing rule or a size that does not divide never replicates silently: both raise an error
that names the parameter and the fix.
"""

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.config import field_values
from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.trace_context import MeshAxes, Rules
from jaxnlp.sharding.mesh import AXES, MeshConfig
from jaxnlp.sharding.pipeline import named_schedule

REPLICATED: dict[str, MeshAxes] = dict.fromkeys(
    (
        *("embed", "embed_out", "mlp", "heads", "kv_heads", "kv", "vocab", "length", "types", "buckets", "gates"),
        *("classes", "layers", "norm", "rank", "characters", "char", "width", "filters"),
    )
)
"""Every parameter replicated on every device: one device, or plain data parallelism."""

FSDP: dict[str, MeshAxes] = {**REPLICATED, "embed": "fsdp"}
"""Parameters sharded over their model dimension and all-gathered at use."""

TENSOR: dict[str, MeshAxes] = {
    **REPLICATED,
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "vocab": "tensor",
}
"""Heads, feed-forward and vocabulary sharded as in Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053)."""

ACTIVATIONS: dict[str, MeshAxes] = {
    "batch": ("data", "fsdp"),
    "length": "sequence",
    "residual": "sequence",
    "activation": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "kv": None,
    "mlp": "tensor",
    "vocab": "tensor",
}
"""Activations: the batch is sharded over data and fsdp, the length over sequence, other axes as in TENSOR.

`length` is the length axis of the inputs of attention and feed-forward layers. `residual` is the length axis of the
residual stream (norms and dropout); sharding it over tensor as well gives Megatron's sequence parallelism."""

MEMORIES = ("device", "host")


@dataclasses.dataclass(kw_only=True)
class Sharding:
    """Parallelism as rule tables over a mesh.

    mesh: number of devices along each mesh axis.
    params: rules of parameters at rest. A parameter sharded over a batch axis is all-gathered at use, layer by layer,
        and freed afterwards.
    gradients: rules of gradients; None: those of params. Gradients sharded over a batch axis are reduce-scattered,
        others all-reduced.
    optimizer: rules of the optimizer state; None: those of params.
    optimizer_memory: where the optimizer state is stored: "device", or "host" (pinned memory). Host state is copied to
        the device one layer at a time for the update (ZeRO-Offload, Ren et al. 2021, arXiv:2101.06840;
        `training/step/offload.py`).
    activations: rules of the logical axes of activations.
    pipeline: the schedule, required for more than one stage: one of `sharding/pipeline.py`, e.g. `GPipe()`, or its
        name: "naive", "gpipe", "1f1b" or "circular" (with virtual_stages=2).
    """

    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    params: dict[str, MeshAxes] = dataclasses.field(default_factory=REPLICATED.copy)
    gradients: dict[str, MeshAxes] | None = None
    optimizer: dict[str, MeshAxes] | None = None
    optimizer_memory: str = "device"
    activations: dict[str, MeshAxes] = dataclasses.field(default_factory=ACTIVATIONS.copy)
    pipeline: object = None  # a name or a schedule; typed so that flags can set it

    def over(self, **sizes: Any) -> "Sharding":
        """A copy of these tables over a mesh of these sizes, e.g. `ZERO3.over(fsdp=8)`.

        Sizes not given are 1; -1 takes the remaining devices. Other fields of `MeshConfig` keep their defaults.
        """
        new = copy.deepcopy(self)
        return dataclasses.replace(new, mesh=MeshConfig(**{"data": 1, **sizes}))

    @property
    def compute_rules(self) -> dict[str, MeshAxes]:
        """Rules of parameters at use: those at rest without the batch axes, over which parameters are all-gathered."""
        batch = set(as_tuple(self.activations.get("batch")))
        at_use = {name: tuple(a for a in as_tuple(axes) if a not in batch) for name, axes in self.params.items()}
        return {name: axes[0] if len(axes) == 1 else (axes or None) for name, axes in at_use.items()}

    @property
    def state_rules(self) -> dict[str, Rules]:
        """Rules of parameters, gradients and optimizer state; None is resolved to the rules of parameters."""
        return {
            "params": self.params,
            "gradients": self.params if self.gradients is None else self.gradients,
            "optimizer": self.params if self.optimizer is None else self.optimizer,
        }

    def check(self) -> None:
        if self.mesh.stage != 1 and self.pipeline is None:
            raise FieldError("pipeline", None, f"mesh.stage={self.mesh.stage} needs a schedule, as 'gpipe' or '1f1b'")
        if self.mesh.stage != 1 and "stage" not in as_tuple(self.params.get("layers")):
            message = (
                f"mesh.stage={self.mesh.stage} splits the stacked layers; map them to 'stage', as the preset PP does"
            )
            raise FieldError("params['layers']", self.params.get("layers"), message)
        if self.pipeline is not None:
            named_schedule(self.pipeline)
        if self.optimizer_memory not in MEMORIES:
            raise FieldError("optimizer_memory", self.optimizer_memory, f"expected one of {', '.join(MEMORIES)}")
        for field, rules in field_values(self, "params", "gradients", "optimizer", "activations").items():
            for logical, axes in (rules or {}).items():
                for axis in as_tuple(axes):
                    if axis not in AXES:
                        raise FieldError(
                            f"{field}[{logical!r}]", axis, f"no such mesh axis; expected one of {', '.join(AXES)}"
                        )


def as_tuple(axes: MeshAxes) -> tuple[str, ...]:
    """A rule's value as a tuple of mesh axes."""
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def resolve_spec(
    path: str, names: tuple[str | None, ...], shape: tuple[int, ...], rules: Rules, sizes: Mapping[str, int]
):
    """The PartitionSpec of one array.

    Args:
        path: the array's name, for messages.
        names: logical axis of each dimension; None replicates that dimension.
        shape: shape of the array.
        rules: logical axis -> mesh axes.
        sizes: mesh axis -> number of devices.

    Raises:
        UserError: an axis without a rule, a mesh axis used twice, or a size that does not divide.
    """
    split_by: dict[str, str] = {}
    spec = []
    for size, name in zip(shape, names, strict=True):
        if name is not None and name not in rules:
            rule_names = ", ".join(sorted(rules))
            raise UserError(
                f"{path}: logical axis {name!r} has no rule (rules: {rule_names}); add it, with None to replicate"
            )
        axes = as_tuple(rules[name]) if name is not None else ()
        for axis in axes:
            if axis in split_by:
                raise UserError(
                    f"{path}: mesh axis {axis!r} splits both {split_by[axis]!r} and {name!r}; map one of them elsewhere"
                )
            split_by[axis] = str(name)
        count = math.prod(sizes[axis] for axis in axes)
        if size % count:
            raise UserError(
                f"{path}: {name}={size} does not divide over mesh axes {'x'.join(axes)}={count}; "
                f"change the model's size, the mesh, or the rule for {name!r}"
            )
        spec.append(rules[str(name)] if axes else None)
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*(tuple(axes) if isinstance(axes, list) else axes for axes in spec))


def shardings(shapes: Any, names: Any, rules: Rules, mesh: Any) -> Any:
    """A NamedSharding for each leaf. Raises UserError as `resolve` does.

    Args:
        shapes: tree of arrays or ShapeDtypeStructs.
        names: tree of the same structure, with tuples of logical axes as leaves.
    """

    def sharding_of(path, leaf, axes):
        return NamedSharding(mesh, resolve_spec(path_name(path), axes, leaf.shape, rules, mesh.shape))

    return jax.tree_util.tree_map_with_path(sharding_of, shapes, names)


def path_name(path: Any) -> str:
    """A tree path as 'block_0/attention/query/kernel'."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
