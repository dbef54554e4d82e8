"""Conversion between Linen modules and plain parameter trees; the only file in `sharding/` that imports Flax."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec


def abstract_params(module: Any, *args: Any) -> tuple[Any, Any]:
    """Shapes and logical axes of a module's parameters, without allocating them.

    Args:
        module: a Linen module. args: abstract or real example inputs.

    Returns:
        (shapes, names): nested dicts of ShapeDtypeStruct, and of tuples of logical axis names.
    """
    boxed = jax.eval_shape(module.init, jax.random.key(0), *args)["params"]
    specs = nn.get_partition_spec(boxed)
    shapes = nn.meta.unbox(boxed)

    def names(leaf, spec):
        return tuple(spec) + (None,) * (leaf.ndim - len(spec))

    is_spec = lambda x: isinstance(x, PartitionSpec)
    return shapes, jax.tree.map(names, shapes, jax.tree.map(lambda s: s, specs, is_leaf=is_spec))


def parameter_table(module: Any, *args: Any) -> list[tuple[tuple[str, ...], tuple[int, ...], tuple[str | None, ...]]]:
    """(path, shape, logical axes) of each parameter, in the order in which the module creates them.

    Outside of scanned layers this is the order of the computation; trees returned by JAX transformations are sorted by
    name instead. The arguments are those of `abstract_params`.
    """
    rows = []

    def walk(tree, path):
        for name, x in tree.items():
            if isinstance(x, Mapping):
                walk(x, (*path, name))
            else:
                shape, names = nn.meta.unbox(x).shape, tuple(nn.get_partition_spec(x))
                rows.append(((*path, name), shape, names + (None,) * (len(shape) - len(names))))

    jax.eval_shape(lambda *a: walk(module.init(jax.random.key(0), *a)["params"], ()), *args)
    return rows


def init_params(module: Any, key: jax.Array, *args: Any) -> Any:
    """A module's parameters as plain nested dicts of arrays."""
    return nn.meta.unbox(module.init(key, *args)["params"])


def make_apply(module: Any) -> Any:
    """`apply(params, *args, key=None, **kwargs)`: the module as a pure function.

    Dropout is on if `key` is given.
    """

    def apply(params, *args, key=None, **kwargs):
        if key is None:
            return module.apply({"params": params}, *args, **kwargs)
        return module.apply({"params": params}, *args, deterministic=False, rngs={"dropout": key}, **kwargs)

    return apply


def make_capture(module: Any) -> Any:
    """`capture(params, *args, **kwargs) -> (output, intermediates)`: the module's output and the values it sows.

    `intermediates` is a dict by path, e.g. "block_0/hidden", the output of a block, and
    "block_0/attention/attention_weights" (B, H, T, S). Scanned layers add a leading layer axis.
    """

    def capture(params, *args, **kwargs):
        output, state = module.apply({"params": params}, *args, mutable=["intermediates"], **kwargs)
        leaves = jax.tree_util.tree_leaves_with_path(state["intermediates"])
        return output, {"/".join(str(k.key) for k in path[:-1]): x for path, x in leaves}

    return capture
