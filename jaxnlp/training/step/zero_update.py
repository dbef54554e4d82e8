"""The parameter update when the optimizer's state is split over devices and the parameters are not (ZeRO 1 and 2)."""

import dataclasses
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.trees import PyTree


@dataclasses.dataclass(frozen=True)
class Layouts:
    """Layouts of the parameters during the update and at rest, as trees like the parameters.

    Each device updates its share in the parameters' own dtype, and the shares are gathered afterwards (Rajbhandari et
    al. 2020, arXiv:1910.02054, section 5.1).

    axes: logical axes. updated: shardings during the optimizer's update. at_rest: shardings at rest.
    """

    axes: PyTree
    updated: PyTree
    at_rest: PyTree

    def apply_updates(self, params: Any, updates: Any) -> Any:
        """params + updates, in the sharding of the update."""
        return jax.lax.with_sharding_constraint(optax.apply_updates(params, updates), self.updated)

    def gather(self, new: Any, old: Any) -> Any:
        """`new` in its sharding at rest, written over `old`, which must not be read afterwards.

        Stacked layers are gathered one at a time, each over its old values. If all were gathered at once, the compiler
        would hold every gathered parameter next to every old one.
        """
        leaves, tree = jax.tree.flatten(new)
        axes, updated, at_rest, old = (tree.flatten_up_to(x) for x in (self.axes, self.updated, self.at_rest, old))
        stacks: dict[int, list[int]] = {}  # number of layers -> indices of leaves
        for i, leaf in enumerate(leaves):
            stacked = axes[i][:1] == ("layers",) and not any(at_rest[i].spec[:1])  # no stage axis splits the layers
            if stacked and updated[i].spec != at_rest[i].spec:
                stacks.setdefault(leaf.shape[0], []).append(i)
            else:
                leaves[i] = jax.lax.with_sharding_constraint(leaf, at_rest[i])
        for count, members in stacks.items():
            layer = [NamedSharding(at_rest[i].mesh, PartitionSpec(*at_rest[i].spec[1:])) for i in members]
            gathered = _one_by_one([leaves[i] for i in members], [old[i] for i in members], layer, count)
            leaves = [gathered[members.index(i)] if i in members else leaf for i, leaf in enumerate(leaves)]
        return tree.unflatten(leaves)


def _one_by_one(new: list[Any], old: list[Any], layer: list[Any], count: int) -> list[Any]:
    """`old` with each layer overwritten by that of `new`, in the sharding `layer`."""

    def write_layer(i, places):
        rows = [jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for x in new]
        rows = jax.lax.with_sharding_constraint(rows, layer)
        return [jax.lax.dynamic_update_index_in_dim(x, row, i, 0) for x, row in zip(places, rows, strict=True)]

    return jax.lax.fori_loop(0, count, write_layer, old)
