"""The training state: one pytree, and how it is laid out over the mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.sharding.rules import Sharding, shardings


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "opt_state", "key", "skipped", "scaling"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    """Everything a step reads and writes.

    step: steps taken. params, opt_state: of the model and the optimizer.
    key: the run's root key (its raw data); a step's keys are folded from it and the step.
    skipped: steps whose update was left out because it was not finite.
    scaling: of the loss under float16: `scale`, and `good` steps since it last changed; else None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    skipped: jax.Array
    scaling: dict[str, jax.Array] | None


def new_state(params: Any, optimizer: optax.GradientTransformation, seed: int, loss_scale: float | None) -> State:
    """The state at step 0. `loss_scale` is the first scale of float16 losses, None for other dtypes."""
    scaling = None
    if loss_scale is not None:
        scaling = {"scale": jnp.float32(loss_scale), "good": jnp.int32(0)}
    return State(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.int32(0),
        scaling=scaling,
        key=jax.random.key_data(jax.random.key(seed)),
    )


def gradient_shardings(params: Any, axes: Any, config: Sharding, mesh: Any) -> Any:
    """The sharding of each parameter's gradient. Arguments as `state_shardings`."""
    return shardings(params, axes, config.params if config.gradients is None else config.gradients, mesh)


def update_shardings(params: Any, axes: Any, config: Sharding, mesh: Any) -> Any:
    """The sharding of each parameter as the optimizer lays it out. Arguments as `state_shardings`."""
    return shardings(params, axes, config.params if config.optimizer is None else config.optimizer, mesh)


def state_shardings(state: State, axes: Any, config: Sharding, mesh: Any) -> State:
    """The sharding of every leaf of a state.

    Args:
        state: abstract or real. axes: logical axes of its parameters, as a tree like them.

    The optimizer's copies of a parameter (moments, accumulators) follow `config.optimizer`,
    or the parameters' rules; its leaves of any other shape (counters, Adafactor's factors) are
    whole on every device.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    layout = jax.tree.leaves(update_shardings(state.params, axes, config, mesh))
    params = jax.tree_util.tree_leaves_with_path(state.params)
    like = {path: (leaf.shape, sharding) for (path, leaf), sharding in zip(params, layout, strict=True)}

    def one(path, leaf):
        # An optimizer keeps its trees like the parameters somewhere inside its own state.
        tails = (like.get(path[i:]) for i in range(len(path)))
        shape, sharding = next((found for found in tails if found), (None, whole))
        return sharding if leaf.shape == shape else whole

    opt_state = jax.tree_util.tree_map_with_path(one, state.opt_state)
    make: Any = State  # of shardings, where State's own fields are arrays
    return make(
        step=whole,
        params=shardings(state.params, axes, config.params, mesh),
        opt_state=opt_state,
        key=whole,
        skipped=whole,
        scaling=jax.tree.map(lambda _: whole, state.scaling),
    )
