"""The jitted functions of an experiment over its mesh: initialisation, training step and evaluation step."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError
from jaxnlp.evals.loss import make_eval_step
from jaxnlp.evals.predictions import make_predict_step
from jaxnlp.inference.bound_model import BoundModel
from jaxnlp.nn import trace_context
from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.optim import LAYERWISE, make_optimizer
from jaxnlp.peft.tuning import TunedModel, attach
from jaxnlp.sharding.functional import abstract_params, init_params, make_apply
from jaxnlp.sharding.mesh import make_mesh
from jaxnlp.sharding.pipeline import Schedule, named_schedule
from jaxnlp.sharding.rules import as_tuple, resolve_spec
from jaxnlp.training.experiment import Experiment, check_batch
from jaxnlp.training.step.offload import Offload
from jaxnlp.training.step.pipeline_step import make_sum_gradients
from jaxnlp.training.step.state import TrainState, gradient_shardings, new_state, state_shardings, update_shardings
from jaxnlp.training.step.step import Step, make_step, many_steps
from jaxnlp.training.step.validate import (
    check_axes,
    check_blocks,
    check_heads,
    check_kernel,
    check_names,
    check_stages,
)
from jaxnlp.training.step.zero_update import Layouts
from jaxnlp.trees import Params, PyTree, get_at, merge, select, set_at

if TYPE_CHECKING:
    import flax.linen as nn

TUNED = 0x7D  # folded into the run's key for the tuned parameters' initial values


@dataclasses.dataclass(frozen=True)
class Program:
    """An experiment over a mesh, ready to run.

    apply(params, *args, key=None): the model's forward pass. Call it, or the function that contains it, within
        `context()`; over several devices it raises UserError outside.
    axes: logical axes of each trained parameter. abstract: the state's shapes, dtypes and shardings.
    init(): a new state. step(state, batch): one call, with the state donated; with `steps_per_call` above 1 the batch
        has a leading axis of that size. eval_step(params, batch): sums over the batch.
    tuning: the model with its PEFT method; None: all parameters are trained.
    init_from_params(params): a state at step 0 with these model parameters.
    """

    experiment: Experiment
    mesh: Mesh
    apply: Callable
    axes: PyTree
    abstract: TrainState
    init: Callable[[], TrainState]
    step: Callable[[TrainState, PyTree], tuple[TrainState, dict[str, jax.Array]]]
    eval_step: Callable[[Params, PyTree], dict[str, jax.Array]]
    batch_sharding: NamedSharding
    init_from_params: Callable[[Params], TrainState]
    tuning: TunedModel | None = None

    @functools.cached_property
    def predict_step(self) -> Callable[[Params, PyTree], jax.Array]:
        """(params, batch) -> a head's logits, compiled once. Call it within `context(any_length=True)`."""
        return jax.jit(make_predict_step(self.apply))

    @property
    def all_axes(self) -> Any:
        """Logical axes of all parameters, trained or frozen."""
        return self.axes if self.tuning is None else merge(self.tuning.frozen_axes, self.axes)

    @property
    def base_params_spec(self) -> tuple[Any, Any]:
        """(shapes and shardings, logical axes) of the model's own parameters; quantised ones as before quantisation."""
        if self.tuning is None:
            return self.abstract.all_params, self.axes
        specs, rules = select(self.abstract.all_params, self.tuning.shapes), self.experiment.sharding.params
        for path in self.tuning.blocks:
            x, names = get_at(self.tuning.shapes, path), get_at(self.tuning.base_axes, path)
            spec = resolve_spec("/".join(path), names, x.shape, rules, self.mesh.shape)
            specs = set_at(specs, path, jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)))
        return specs, self.tuning.base_axes

    @property
    def pipeline_schedule(self) -> Schedule | None:
        """The schedule of `sharding/pipeline.py`; None without pipeline parallelism."""
        return named_schedule(self.experiment.sharding.pipeline) if self.mesh.shape["stage"] > 1 else None

    def context(self, *, any_length: bool = False, inside_jit: bool = False, **rules: Any) -> contextlib.ExitStack:
        """A context with the mesh and the rule tables, for code that traces the model.

        Args:
            any_length: sequences may have any length, not only the data's `seq_len`, so the length is not split.
            inside_jit: it may be entered inside `jit` and `grad`, where JAX allows only an abstract mesh.
            rules: rules of activations that replace the experiment's.
        """
        unsharded: dict[str, Any] = {"length": None, "residual": None} if any_length else {}
        return _context(self.mesh, self.experiment.sharding, {**unsharded, **rules}, inside_jit)

    def bind(self, tokenizer: Tokenizer) -> BoundModel:
        """The model as `jaxnlp.inference` uses it."""
        e = self.experiment
        ways = math.prod(self.mesh.shape[axis] for axis in as_tuple(e.sharding.activations.get("batch")))
        context = functools.partial(self.context, any_length=True)
        return BoundModel(e.model, self.apply, tokenizer, e.data.task, self.mesh, context, ways, self.tuning)

    @property
    def local_row_indices(self) -> np.ndarray:
        """Rows of each global batch that this process feeds, in order: those on its devices. They need not be
        contiguous, since a host of a TPU slice has a square of chips."""
        e = self.experiment.data
        places = self.batch_sharding.addressable_devices_indices_map((e.batch_size, e.seq_len)).values()
        return np.unique([row for place in places if place for row in range(e.batch_size)[place[0]]])

    def shard_batch(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """This process's rows as global arrays on the mesh; with one process, unchanged, since `step` places them."""
        self._check((batch,))
        return self._put(batch, self.batch_sharding, ())

    def shard_batches(self, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """Several batches stacked along a new leading axis, for `steps_per_call`."""
        self._check(batches)
        stack = {name: np.stack([b[name] for b in batches]) for name in batches[0]}
        sharding = NamedSharding(self.mesh, PartitionSpec(None, *self.batch_sharding.spec))
        return self._put(stack, sharding, (len(batches),))

    def _check(self, batches):
        if self.tuning is not None:
            for batch in batches:
                self.tuning.method.check_batch(batch)

    def _put(self, batch, sharding, lead):
        if jax.process_count() == 1:
            return batch
        size = (*lead, self.experiment.data.batch_size)
        make_array = jax.make_array_from_process_local_data
        return {name: make_array(sharding, x, (*size, *x.shape[len(size) :])) for name, x in batch.items()}


def build(experiment: Experiment, devices: Sequence[Any] | None = None, *, only_traced: bool = False) -> Program:
    """Builds the program of a resolved experiment over the devices. Compiles nothing and creates no arrays.

    Args:
        only_traced: nothing will be compiled for these devices, so attention may use another platform's kernel.

    Raises:
        UserError: a size that does not divide over the mesh, a missing rule, an unused rule, a mesh axis over
            which nothing is split, an attention kernel that cannot run on these devices.
    """
    e, mesh = experiment, make_mesh(experiment.sharding.mesh, devices)
    check_batch(e, mesh.size)
    sums = make_sum_gradients(e, mesh.shape["stage"]) if mesh.shape["stage"] > 1 else None
    if not only_traced:
        check_kernel(e.model.attention, mesh.devices.flat[0].platform)
    network = _network(e, mesh)
    shapes, axes, tuning = network.shapes, network.axes, network.tuning
    optimizer, schedule = make_optimizer(e.optim, e.num_steps, axes, network.rates)
    state = functools.partial(new_state, optimizer=optimizer, seed=e.seed, loss_scale=_loss_scale(e))
    abstract = jax.eval_shape(lambda params, frozen: state(params, frozen=frozen), shapes, network.frozen)
    layout = state_shardings(abstract, axes, e.sharding, mesh, tuning and tuning.frozen_axes)
    gradients = gradient_shardings(shapes, axes, e.sharding, mesh)
    updated = update_shardings(shapes, axes, e.sharding, mesh)
    check_axes(e, (layout, gradients, updated), **network.model)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout)
    by_parts = lambda: Offload(optimizer, abstract, axes, layerwise=e.optim.name in LAYERWISE)
    step = make_step(
        network.apply,
        e.objective,
        optimizer,
        schedule,
        accum_steps=e.accum_steps,
        skip_nonfinite=e.on_nonfinite == "skip",
        gradients=None if mesh.size == 1 else gradients,
        sums=sums,
        layouts=None if updated == layout.params else Layouts(axes, updated, layout.params),
        update=by_parts() if e.sharding.optimizer_memory == "host" else None,
    )
    rows = PartitionSpec(as_tuple(e.sharding.activations.get("batch")) or None)
    return _program(e, mesh, network, state, abstract, layout, step, NamedSharding(mesh, rows))


class _OwnModel(TypedDict):
    """Arguments of the checks in `validate.py`: the model before any PEFT method, with its abstract parameters."""

    apply: Callable
    params: PyTree
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class _Network:
    """An abstract model with its PEFT method.

    model: the model before any PEFT method, for checks.
    inputs: shapes of the module's arguments.
    apply, shapes, axes: the forward pass with the method; shapes and logical axes of the trained parameters.
    tuning, frozen, rates: the method's; None without one.
    """

    model: _OwnModel
    module: "nn.Module"
    inputs: tuple[jax.ShapeDtypeStruct, ...]
    apply: Callable
    shapes: PyTree
    axes: PyTree
    tuning: TunedModel | None = None
    frozen: PyTree = None
    rates: PyTree = None


def _network(e: Experiment, mesh: Any) -> _Network:
    """The experiment's model with its PEFT method, checked against the tables."""
    module = e.model.build()
    apply = make_apply(module)
    inputs = e.model.example_inputs(e.data.batch_size // e.accum_steps, e.data.seq_len)
    shapes, axes = abstract_params(module, *inputs)
    check_heads(e, axes, mesh.shape)
    network = _Network(_OwnModel(apply=apply, params=shapes, mesh=mesh), module, inputs, apply, shapes, axes)
    all_axes = [axes]
    if e.peft is not None:
        check_stages(e.peft, mesh.shape["stage"])
        tuning = attach(e.peft, module, *inputs, head=head_patterns(shapes))
        check_blocks(e, tuning, mesh.shape)
        trained = jax.eval_shape(tuning.init, jax.random.key(0), shapes)
        all_axes.append(tuning.axes)
        network = dataclasses.replace(
            network,
            apply=tuning.apply(apply),
            shapes=trained,
            axes=tuning.axes,
            tuning=tuning,
            frozen=jax.eval_shape(tuning.frozen, shapes),
            rates=tuning.rates(trained),
        )
    if mesh.size > 1:
        network = dataclasses.replace(network, apply=_needs_context(network.apply, dict(mesh.shape)))
    check_names(e, all_axes, **network.model)
    return network


def _program(
    e: Experiment,
    mesh: Any,
    network: _Network,
    state: Callable[..., TrainState],
    abstract: TrainState,
    layout: TrainState,
    step: Step,
    batch_sharding: NamedSharding,
) -> Program:
    """The program with its jitted functions. state: `new_state` without its parameters. layout: its shardings."""
    tuning = network.tuning

    def init() -> TrainState:
        # The same numbers on every mesh: keys are split by parameter, not by device.
        zeros = (np.zeros(x.shape, x.dtype) for x in network.inputs)
        return init_from_params(init_params(network.module, jax.random.key(e.seed), *zeros))

    def init_from_params(params: Any) -> TrainState:
        if tuning is None:
            return state(params)
        tuned = tuning.init(jax.random.fold_in(jax.random.key(e.seed), TUNED), params)
        return state(tuned, frozen=tuning.frozen(params))

    stack = batch_sharding
    if e.steps_per_call > 1:
        step = many_steps(step)
        stack = NamedSharding(mesh, PartitionSpec(None, *batch_sharding.spec))
    in_context, replicated = functools.partial(_within, mesh, e.sharding), NamedSharding(mesh, PartitionSpec())
    eval_step = make_eval_step(network.apply, e.objective)
    return Program(
        experiment=e,
        mesh=mesh,
        apply=network.apply,
        axes=network.axes,
        abstract=abstract,
        init=in_context(jax.jit(init, out_shardings=layout)),
        step=in_context(
            jax.jit(step, in_shardings=(layout, stack), out_shardings=(layout, replicated), donate_argnums=0)
        ),
        eval_step=in_context(
            jax.jit(eval_step, in_shardings=(layout.all_params, batch_sharding), out_shardings=replicated)
        ),
        batch_sharding=batch_sharding,
        init_from_params=in_context(jax.jit(init_from_params, out_shardings=layout)),
        tuning=tuning,
    )


def _loss_scale(e: Experiment) -> float | None:
    """The initial loss scale under float16; None for other dtypes."""
    policy = e.model.policy
    return e.loss_scale if policy is not None and policy.compute_dtype == "float16" else None


def head_patterns(shapes: Any) -> tuple[str, ...]:
    """Patterns of the parameters beside a fine-tuned model's body: they are new, so every method trains them fully."""
    return tuple(f"{name}/*" for name in shapes if name != "trunk") if "trunk" in shapes else ()


def _needs_context(apply: Callable, sizes: dict[str, int]) -> Callable:
    """`apply` that raises UserError outside the mesh's context, where its sharding would be lost."""

    def checked(*args: Any, **kwargs: Any) -> Any:
        if trace_context.current().layout is None or jax.sharding.get_abstract_mesh().empty:
            mesh = ", ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
            raise UserError(
                f"Program.apply: the model is traced outside the context of its mesh ({mesh}), and would lose its "
                "sharding; call it, or the jitted function that calls it, within `with program.context():`"
            )
        return apply(*args, **kwargs)

    return checked


def _within(mesh, sharding, fn):
    """fn, traced and run in the context of the mesh and the rule tables; so are `fn.lower` and `fn.trace`."""

    @functools.wraps(fn)
    def call(*args, **kwargs):
        with _context(mesh, sharding, {}):
            return fn(*args, **kwargs)

    if isinstance(fn, jax.stages.Wrapped):
        vars(call).update(lower=_within(mesh, sharding, fn.lower), trace=_within(mesh, sharding, fn.trace))
    return call


def _context(mesh, sharding, changes, inside_jit: bool = False) -> contextlib.ExitStack:
    activations, at_rest = {**sharding.activations, **changes}, sharding.params
    at_use, gradients = sharding.compute_rules, at_rest if sharding.gradients is None else sharding.gradients
    uniform = all(
        as_tuple(at_rest.get(name)) == as_tuple(at_use.get(name)) == as_tuple(gradients.get(name)) for name in at_rest
    )
    with contextlib.ExitStack() as stack:
        abstract = lambda: jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
        stack.enter_context(abstract() if inside_jit else jax.set_mesh(mesh))
        stack.enter_context(axis_rules(activations) if uniform else axis_rules(activations, at_use, gradients))
        return stack.pop_all()
