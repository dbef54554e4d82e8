"""Checks an experiment's rule tables against its model and mesh: unused names, and devices that do the same work."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from jaxnlp.config import did_you_mean, field_values
from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.kernels import AttentionKernel
from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.nn.quantised import SMALLEST, block_size
from jaxnlp.peft.method import PEFTMethod
from jaxnlp.peft.tuning import TunedModel
from jaxnlp.sharding.rules import ACTIVATIONS, REPLICATED, as_tuple
from jaxnlp.training.experiment import Experiment
from jaxnlp.trees import get_at

TABLES = ("params", "gradients", "optimizer")
FOLLOW = ("heads", "kv_heads", "kv", "mlp", "vocab")
"""Activations that are split with a parameter. Alone they split the scores or the logits, but not the layers."""

REMEDIES = {
    "stage": "map params['layers'] to it, as the preset PP does",
    "sequence": "map 'length' and 'residual' of activations to it",
    "tensor": "map heads, kv_heads, mlp and vocab of params to it, as the preset TP does",
}


def check_kernel(kernel: AttentionKernel | None, platform: str) -> None:
    """Raises UserError for an attention kernel that does not run on the platform."""
    if kernel is not None and not kernel.runs_on(platform):
        name, platforms = type(kernel).__name__, ", ".join(kernel.platforms)
        raise UserError(f"model.attention={name}(): does not run on {platform}, only on {platforms}; use Einsum()")


def check_stages(method: PEFTMethod, stages: int) -> None:
    """Raises FieldError for a PEFT method that does not support several pipeline stages."""
    if stages > 1:
        method.check_pipeline(stages)


def check_heads(experiment: Experiment, axes: Any, sizes: Mapping[str, int]) -> None:
    """Raises FieldError if the heads do not divide over the mesh axes that split them.

    Args:
        axes: logical axes of each parameter. sizes: mesh axis -> number of devices.
    """
    model, names = experiment.model.body, parameter_names(axes)
    prefix = "model" if model is experiment.model else "model.body"
    for name, field, count in (
        ("heads", "num_heads", model.num_heads),
        ("kv_heads", "num_kv_heads", model.num_kv_heads),
    ):
        for table in field_values(experiment.sharding, *TABLES).values():
            split_axes = as_tuple((table or {}).get(name)) if name in names else ()
            ways = math.prod(sizes.get(axis, 1) for axis in split_axes)
            if count is not None and count % ways:
                over, larger = "*".join(split_axes), -(-count // ways) * ways
                message = f"does not divide over {over}={ways} devices; "
                message += f"use {over}={math.gcd(count, ways)} or {field}={larger}"
                if name == "kv_heads":  # attention accepts replicated keys with sharded queries
                    message += f", or map 'kv_heads' to None in {' and '.join(_splitting(experiment, name))}"
                raise FieldError(f"{prefix}.{field}", count, message)


def _splitting(experiment: Experiment, name: str) -> list[str]:
    """The rule tables that map a logical axis to a mesh axis."""
    tables = field_values(experiment.sharding, *TABLES, "activations").items()
    return [f"sharding.{table}" for table, rules in tables if (rules or {}).get(name) is not None]


def check_blocks(experiment: Experiment, tuning: TunedModel, sizes: Mapping[str, int]) -> None:
    """Raises FieldError if a quantised base cannot be sharded: each device's share of a kernel must be full blocks.

    Args:
        sizes: mesh axis -> number of devices.
    """
    if tuning.blocks and sizes["stage"] > 1:
        message = f"does not support pipeline stages (mesh.stage={sizes['stage']}); use mesh.stage=1, or 'bfloat16'"
        raise FieldError("peft.base_dtype", tuning.method.base_dtype, message)
    block, rules = tuning.method.base_block, experiment.sharding.params
    counts = {path: get_at(tuning.shapes, path).shape[how.axis] for path, how in tuning.blocks.items()}
    split_axes = {path: as_tuple(rules.get(str(how.axes[how.axis]))) for path, how in tuning.blocks.items()}
    ways = {path: math.prod(sizes[axis] for axis in axes) for path, axes in split_axes.items()}
    # A share is a number of full blocks; else the scales of a block would be on other devices than its codes.
    is_full = lambda path, size: size is not None and counts[path] % (ways[path] * size) == 0
    for path, how in tuning.blocks.items():
        if is_full(path, how.size) or counts[path] % ways[path]:
            continue  # an axis that does not divide is reported when the rules are resolved
        fits = lambda size: all(is_full(path, block_size(count, size)) for path, count in counts.items())
        smaller = next((size for size in range(block - 1, SMALLEST - 1, -1) if size % 2 == 0 and fits(size)), None)
        over = "*".join(split_axes[path])
        message = f"{'/'.join(path)} has {how.axes[how.axis]}={counts[path]} over {over}={ways[path]} devices"
        best = max((block_size(count, smaller) or 0 for count in counts.values()) if smaller else (0,))
        remedy = f"use {best}" if best else f"use fewer devices in {over}, or exclude it with peft.skip_modules"
        raise FieldError(
            "peft.base_block", block, f"{message}, which leaves no full blocks of {how.size} on each; {remedy}"
        )


def check_names(experiment: Experiment, axes: Iterable[Any], apply: Any, params: Any, mesh: Any) -> None:
    """Raises FieldError for a rule of a logical axis that neither this model nor any other of the library has.

    Args:
        axes: trees of the logical axes of all parameters. apply, params: the forward pass, and abstract parameters.
    """
    known_names = {*REPLICATED, *ACTIVATIONS}.union(*(parameter_names(tree) for tree in axes))
    for table, rules in field_values(experiment.sharding, *TABLES, "activations").items():
        unknown = [name for name in rules or {} if name not in known_names]
        if unknown and table == "activations":
            # On one device no activation is constrained, so a trace would not show their names.
            used_names = set(unknown) if mesh.size == 1 else activation_names(experiment, apply, params, mesh)
            unknown = [name for name in unknown if name not in used_names]
        if unknown:
            message = f"this model has no such logical axis{did_you_mean(unknown[0], sorted(known_names))}"
            raise FieldError(f"sharding.{table}[{unknown[0]!r}]", rules[unknown[0]], message)


def check_axes(experiment: Experiment, layouts: Any, apply: Any, params: Any, mesh: Any) -> None:
    """Raises FieldError for a mesh axis over which nothing is split: its devices would all do the same work.

    A split of parameters, gradients or the optimizer's state counts. A split of the batch counts too, and one of the
    length or of another activation that occurs in this model, unless it follows a parameter (`FOLLOW`).

    Args:
        layouts: a tree of all shardings of the state and the gradients. apply, params: as for `check_names`.
    """
    rules = experiment.sharding.activations
    split_axes = set(as_tuple(rules.get("batch")))
    for sharding in jax.tree.leaves(layouts):
        split_axes.update(axis for axes in sharding.spec for axis in as_tuple(axes))
    idle = [axis for axis, size in mesh.shape.items() if size > 1 and axis not in split_axes]
    if not idle:
        return
    names = [name for name in rules if name not in FOLLOW and set(as_tuple(rules[name])) & set(idle)]
    if names:
        used_names = activation_names(experiment, apply, params, mesh)
        split_axes.update(axis for name in names if name in used_names for axis in as_tuple(rules[name]))
    for axis in idle:
        if axis not in split_axes:
            size, remedy = mesh.shape[axis], REMEDIES.get(axis, "map 'batch' of activations to it")
            message = f"no table splits this model over it, so its {size} devices would do the same work"
            other_axis = "tensor" if axis == "data" else "data"
            raise FieldError(
                f"sharding.mesh.{axis}", size, f"{message}; {remedy}, or use {axis}=1 and more of {other_axis}"
            )


def parameter_names(axes: Any) -> set[str]:
    """The names in a tree of logical axes."""
    leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    return {name for names in leaves for name in names if name is not None}


def activation_names(experiment: Experiment, apply: Any, params: Any, mesh: Any) -> set[str]:
    """The logical axes that the model looks up in the activations' table, recorded by a trace with dropout on."""
    e, rules = experiment, RecordedRules(experiment.sharding.activations)
    inputs = e.model.example_inputs(e.data.batch_size // e.accum_steps, e.data.seq_len)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh), axis_rules(rules):
        jax.eval_shape(lambda params, inputs, key: apply(params, *inputs, key=key), params, inputs, key)
    return rules.names


class RecordedRules(dict):
    """A rule table that records which of its names were looked up."""

    def __init__(self, rules: Mapping[str, Any]):
        super().__init__(rules)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)
