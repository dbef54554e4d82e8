"""Optimizer state in host memory, updated one layer at a time: ZeRO-Offload (arXiv:2101.06840).

Ren et al. 2021 run the update on the host's processor, next to the state. Here the state is copied to the device, which
holds the gradients and is faster, updated there, and copied back. This is done one layer at a time: the full state
would take the memory that offloading saves. Leaves without a parameter, such as counters, stay on the device.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from jaxnlp.errors import FieldError
from jaxnlp.training.step.state import TrainState, owners

Leaves = dict[int, Any]
"""Some leaves of a tree, by their index among all leaves."""


@dataclasses.dataclass(frozen=True)
class Shared:
    """Inputs of every part's update: norm of all gradients, the state's counters, whether to update (None: always)."""

    norm: jax.Array
    counters: Leaves
    finite: jax.Array | None


class Offload:
    """Updates the parameters part by part, for an optimizer whose state is in host memory.

    Called as (gradients, state, finite), it returns the new parameters and optimizer state, or the old ones where
    `finite` is false. Stacked layers are updated one after the other, any other parameter in one piece.

    Args:
        optimizer: as `optim.make_optimizer` returns it. abstract: the training state, with its shardings.
        axes: logical axes of each parameter.
        layerwise: whether updating the layers of a stack one by one equals updating the stack. If False, a stack is
            updated in one piece.

    Raises:
        FieldError: the layers are split over devices.
    """

    def __init__(
        self, optimizer: optax.GradientTransformationExtraArgs, abstract: TrainState, axes: Any, layerwise: bool
    ):
        shardings = lambda tree: jax.tree.map(lambda x: x.sharding, tree)
        self.optimizer = optimizer
        self.shardings, self.tree = jax.tree.flatten(shardings(abstract.params))
        self.slot_shardings, self.slot_tree = jax.tree.flatten(shardings(abstract.opt_state))
        self.owner: list[int] = jax.tree.leaves(owners(abstract.opt_state, abstract.params))
        names = [list(names) for names in self.tree.flatten_up_to(axes)]
        self.stacked = [n.index("layers") if layerwise and "layers" in n else None for n in names]
        self.sizes = [
            None if at is None else x.shape[at]
            for x, at in zip(jax.tree.leaves(abstract.params), self.stacked, strict=True)
        ]
        for sharding, i in zip(self.slot_shardings, self.owner, strict=True):
            at = self.stacked[i] if i >= 0 else None
            if at is not None and any(sharding.spec[at : at + 1]):
                message = f"the layers are split over {sharding.spec[at]!r}, but are updated one at a time"
                raise FieldError("sharding.optimizer_memory", "host", f"{message}; use 'device' with a pipeline")

    def __call__(self, grads: Any, state: TrainState, finite: jax.Array | None) -> tuple[Any, Any]:
        norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        grads, params = self.tree.flatten_up_to(grads), self.tree.flatten_up_to(state.params)
        slots = self.slot_tree.flatten_up_to(state.opt_state)
        shared = Shared(norm, {j: slots[j] for j, i in enumerate(self.owner) if i < 0}, finite)
        barrier = jax.lax.optimization_barrier  # without it XLA would copy the state of all parts to the device at once
        for members, count in self._parts():
            p, g = ({i: leaves[i] for i in members} for leaves in (params, grads))
            s = {j: slots[j] for j, i in enumerate(self.owner) if i in members}
            s, norm = barrier((s, norm))
            inputs = dataclasses.replace(shared, norm=norm)
            new = self._update_part(p, g, s, inputs) if count is None else self._layers(p, g, s, inputs, count)
            (p, s), norm = barrier((new, norm))
            for leaves, new in ((params, p), (slots, s)):
                for i, x in new.items():
                    leaves[i] = x
        # An update without parameters advances the counters, once.
        for j, x in self._new({}, {}, {}, shared)[1].items():
            slots[j] = x
        return self.tree.unflatten(params), self.slot_tree.unflatten(slots)

    def _parts(self) -> list[tuple[list[int], int | None]]:
        """(indices of parameters, number of layers) of each group updated together; None: one full parameter."""
        counts = dict.fromkeys(size for size in self.sizes if size is not None)
        stacks = [([i for i, size in enumerate(self.sizes) if size == count], count) for count in counts]
        return [*stacks, *(([i], None) for i, size in enumerate(self.sizes) if size is None)]

    def _layers(self, p: Leaves, g: Leaves, s: Leaves, shared: Shared, count: int) -> tuple[Leaves, Leaves]:
        """Applies `_update_part` to one layer after the other, and writes each result in its place."""

        def update_layer(n, carry):
            # Without this constraint XLA would keep p in the optimizer's sharding, and gather all of it each time.
            p, s = {i: self._at_rest(x, i) for i, x in carry[0].items()}, carry[1]
            row: Any = lambda x, i: jax.lax.dynamic_slice_in_dim(x, n, 1, self.stacked[i])
            write = lambda x, new, i: jax.lax.dynamic_update_slice_in_dim(x, new, n, self.stacked[i])
            p_n, g_n = ({i: row(x, i) for i, x in leaves.items()} for leaves in (p, g))
            new_p, new_s = self._update_part(p_n, g_n, {j: row(x, self.owner[j]) for j, x in s.items()}, shared)
            p = {i: self._at_rest(write(x, new_p[i], i), i) for i, x in p.items()}
            return p, {j: write(x, new_s[j], self.owner[j]) for j, x in s.items()}

        return jax.lax.fori_loop(0, count, update_layer, (p, s))

    def _update_part(self, p: Leaves, g: Leaves, s: Leaves, shared: Shared) -> tuple[Leaves, Leaves]:
        """New parameters and their optimizer state, which is on the device during the update."""
        s = {
            j: jax.device_put(x, NamedSharding(self.slot_shardings[j].mesh, self.slot_shardings[j].spec))
            for j, x in s.items()
        }
        new_p, new_s = self._new(p, g, s, shared)
        new_p = {i: self._at_rest(x, i) for i, x in new_p.items()}
        return new_p, {j: jax.device_put(new_s[j], self.slot_shardings[j]) for j in s}

    def _new(self, p: Leaves, g: Leaves, s: Leaves, shared: Shared) -> tuple[Leaves, Leaves]:
        """New parameters, and their optimizer state with the counters."""
        fill = lambda tree, leaves: tree.unflatten([leaves.get(i, optax.MaskedNode()) for i in range(tree.num_leaves)])
        s, params = {**shared.counters, **s}, fill(self.tree, p)
        grads, state = fill(self.tree, g), fill(self.slot_tree, s)
        moves, state = self.optimizer.update(grads, state, params, gradient_norm=shared.norm)
        pairs = (p, optax.apply_updates(params, moves)), (s, state)
        new = [dict(zip(sorted(old), jax.tree.leaves(tree), strict=True)) for old, tree in pairs]
        if (finite := shared.finite) is not None:
            new = jax.tree.map(lambda x, old: jnp.where(finite, x, old), new, [p, s])
        return new[0], new[1]

    def _at_rest(self, x: jax.Array, i: int) -> jax.Array:
        """Parameter i, or one layer of it, in its sharding at rest."""
        return jax.lax.with_sharding_constraint(x, self.shardings[i])
