"""The training state, one pytree, and its shardings over the mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.errors import FieldError
from jaxnlp.nn.remat import HOST
from jaxnlp.sharding.rules import Sharding, shardings
from jaxnlp.trees import Params, PyTree, merge


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["step", "params", "opt_state", "key", "skipped", "loss_scale", "frozen"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes.

    step: steps taken. params, opt_state: of the model and the optimizer.
    key: the run's root key (its raw data); a step's keys are folded from it and the step.
    skipped: steps whose update was skipped because it was not finite.
    loss_scale: under float16, the `scale` of the loss and the number of `good` steps since it last changed; else None.
    frozen: under a PEFT method, the parameters that are not trained (`params` has those that are); else None.
    """

    step: jax.Array
    params: Params
    opt_state: PyTree
    key: jax.Array
    skipped: jax.Array
    loss_scale: dict[str, jax.Array] | None
    frozen: Params = None

    @property
    def all_params(self) -> Any:
        """All parameters, as the model reads them."""
        return self.params if self.frozen is None else merge(self.frozen, self.params)


def new_state(
    params: Any, optimizer: optax.GradientTransformation, seed: int, loss_scale: float | None, frozen: Any = None
) -> TrainState:
    """The state at step 0. `loss_scale` is the initial scale of the loss under float16, None for other dtypes."""
    scaling = None
    if loss_scale is not None:
        scaling = {"scale": jnp.float32(loss_scale), "good": jnp.int32(0)}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.int32(0),
        loss_scale=scaling,
        key=jax.random.key_data(jax.random.key(seed)),
        frozen=frozen,
    )


def saved_trees(state: TrainState) -> dict[str, Any]:
    """The trees that a checkpoint stores: "params" (those trained) and "rest". Frozen parameters are not saved.

    `loss_scale` keeps the name under which the first checkpoints stored it, "scaling".
    """
    rest = {"step": state.step, "opt_state": state.opt_state, "key": state.key, "skipped": state.skipped}
    return {"params": state.params, "rest": {**rest, "scaling": state.loss_scale}}


def from_saved_trees(trees: dict[str, Any]) -> TrainState:
    """The inverse of `saved_trees`: a state without frozen parameters."""
    rest = {("loss_scale" if name == "scaling" else name): tree for name, tree in trees["rest"].items()}
    return TrainState(params=trees["params"], **rest)


def gradient_shardings(params: Any, axes: Any, config: Sharding, mesh: Any) -> Any:
    """The sharding of each parameter's gradient. Arguments as for `state_shardings`."""
    return shardings(params, axes, config.params if config.gradients is None else config.gradients, mesh)


def update_shardings(params: Any, axes: Any, config: Sharding, mesh: Any) -> Any:
    """The sharding of each parameter during the optimizer's update. Arguments as for `state_shardings`."""
    return shardings(params, axes, config.params if config.optimizer is None else config.optimizer, mesh)


def check_memory(mesh: Any) -> None:
    """Raises FieldError if JAX offers no host memory on the mesh's devices."""
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        problem = f"{device.platform} devices have no memory {HOST!r} (only {', '.join(kinds)})"
        raise FieldError("sharding.optimizer_memory", "host", f"{problem}; use 'device'")


def owners(opt_state: Any, params: Any) -> Any:
    """For each leaf of an optimizer's state, the index of its parameter, or -1 if it has none (counters)."""
    place = {path: i for i, (path, _) in enumerate(jax.tree_util.tree_leaves_with_path(params))}

    def owner(path, _):
        # An optimizer's state contains trees like the parameters, so a leaf's path ends with its parameter's.
        return next((place[path[i:]] for i in range(len(path)) if path[i:] in place), -1)

    return jax.tree_util.tree_map_with_path(owner, opt_state)


def state_shardings(state: TrainState, axes: Any, config: Sharding, mesh: Any, frozen_axes: Any = None) -> TrainState:
    """The sharding of every leaf of a state.

    Args:
        state: abstract or concrete. axes: logical axes of its parameters, as a tree like them. frozen_axes: those of
            its frozen parameters.

    Optimizer leaves with the shape of their parameter (moments, accumulators) follow `config.optimizer`, or the
    parameters' rules, and are in the memory of `config.optimizer_memory`. Optimizer leaves of any other shape
    (counters, Adafactor's factors) are replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    layout = jax.tree.leaves(update_shardings(state.params, axes, config, mesh))
    if config.optimizer_memory == "host":
        check_memory(mesh)
        layout = [sharding.with_memory_kind(HOST) for sharding in layout]
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.params)]
    like = lambda leaf, owner: owner >= 0 and leaf.shape == shapes[owner]
    sharding_of = lambda leaf, owner: layout[owner] if like(leaf, owner) else replicated
    opt_state = jax.tree.map(sharding_of, state.opt_state, owners(state.opt_state, state.params))
    state_of: Any = TrainState  # its fields here are shardings, not arrays
    return state_of(
        step=replicated,
        params=shardings(state.params, axes, config.params, mesh),
        opt_state=opt_state,
        key=replicated,
        skipped=replicated,
        loss_scale=jax.tree.map(lambda _: replicated, state.loss_scale),
        frozen=None if state.frozen is None else shardings(state.frozen, frozen_axes, config.params, mesh),
    )
