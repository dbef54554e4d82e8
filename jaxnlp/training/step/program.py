"""From an experiment to compiled functions: the model, its mesh, and the step over them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.loss import make_eval_step
from jaxnlp.nn import trace_context
from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.optim import LAYERWISE, make_optimizer
from jaxnlp.peft.method import PEFTMethod
from jaxnlp.peft.tuning import TunedModel, attach
from jaxnlp.sharding.functional import abstract_params, init_params, make_apply
from jaxnlp.sharding.mesh import make_mesh
from jaxnlp.sharding.rules import as_tuple, resolve
from jaxnlp.training.experiment import Experiment, check_batch
from jaxnlp.training.step.offload import Offload
from jaxnlp.training.step.pipeline_step import staged
from jaxnlp.training.step.state import TrainState, gradient_shardings, new_state, state_shardings, update_shardings
from jaxnlp.training.step.step import make_step, many_steps
from jaxnlp.training.step.validate import check_axes, check_blocks, check_heads, check_names
from jaxnlp.training.step.zero_update import Layouts
from jaxnlp.trees import get_at, merge, select, set_at

TUNED = 0x7D  # folded into the run's key for the tuned parameters' first values


@dataclasses.dataclass(frozen=True)
class Program:
    """An experiment over a mesh, ready to run.

    apply(params, *args, key=None): the model; call it, or what contains it, within `context()`. Over several devices
    it raises UserError outside.
    axes: logical axes of each trained parameter. abstract: the state's shapes, dtypes and shardings.
    init(): a new state. step(state, batch): one call, the state donated; with
    `steps_per_call` above 1 the batch has that leading axis. eval_step(params, batch): sums.
    tuning: of a method that trains some parameters, what it trains; None: all are.
    start(params): a state at step 0 that begins from these of the model's own.
    """

    experiment: Experiment
    mesh: Any
    apply: Callable
    axes: Any
    abstract: TrainState
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    eval_step: Callable[[Any, Any], dict[str, jax.Array]]
    batch_sharding: NamedSharding
    start: Callable[[Any], TrainState]
    tuning: TunedModel | None = None

    @property
    def all_axes(self) -> Any:
        """Logical axes of all parameters, trained or frozen."""
        return self.axes if self.tuning is None else merge(self.tuning.frozen_axes, self.axes)

    @property
    def base(self) -> tuple[Any, Any]:
        """(shapes and shardings, logical axes) of the model's own parameters; of quantised ones as they were before."""
        if self.tuning is None:
            return self.abstract.model, self.axes
        own, rules = select(self.abstract.model, self.tuning.shapes), self.experiment.sharding.params
        for path in self.tuning.blocks:
            x, names = get_at(self.tuning.shapes, path), get_at(self.tuning.base_axes, path)
            spec = resolve("/".join(path), names, x.shape, rules, self.mesh.shape)
            own = set_at(own, path, jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)))
        return own, self.tuning.base_axes

    def context(self, *, any_length: bool = False, **rules: Any) -> contextlib.ExitStack:
        """The mesh and the tables, for code that traces the model.

        Args:
            any_length: sequences are not the data's `seq_len` but of any length, and so are not split.
            rules: rules of activations to change.
        """
        free: dict[str, Any] = {"length": None, "residual": None} if any_length else {}
        return _context(self.mesh, self.experiment.sharding, {**free, **rules})

    @property
    def rows(self) -> np.ndarray:
        """Which rows of each global batch this process feeds, in order: those on its devices. They need not be one
        piece, as a host of a TPU slice has a square of chips."""
        e = self.experiment.data
        places = self.batch_sharding.addressable_devices_indices_map((e.batch_size, e.seq_len)).values()
        return np.unique([row for place in places if place for row in range(e.batch_size)[place[0]]])

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """This process's rows as global arrays on the mesh. An only process's stay as they are: `step` places them."""
        self._check((batch,))
        return self._put(batch, self.batch_sharding, ())

    def put_stack(self, batches: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
        """Several batches as one, with a leading axis, for `steps_per_call`."""
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
        make = jax.make_array_from_process_local_data
        return {name: make(sharding, x, (*size, *x.shape[len(size) :])) for name, x in batch.items()}


def build(experiment: Experiment, devices: Sequence[Any] | None = None, *, only_traced: bool = False) -> Program:
    """Lays a resolved experiment out over the devices. Nothing is compiled and no array made yet.

    Args:
        only_traced: nothing will be compiled for these devices, so that attention may be another platform's kernel.

    Raises:
        UserError: a size that does not divide over the mesh, a missing rule, a rule in vain, a mesh axis over
            which nothing is split, an attention kernel that cannot run on these devices.
    """
    e = experiment
    mesh = make_mesh(e.sharding.mesh, devices)
    check_batch(e, mesh.size)
    sums = staged(e, mesh.shape["stage"]) if mesh.shape["stage"] > 1 else None
    platform = mesh.devices.flat[0].platform
    kernel = e.model.attention
    runs = kernel is None or kernel.runs_on(platform)
    if kernel is not None and not runs and not only_traced:
        name = type(kernel).__name__
        raise UserError(
            f"model.attention={name}(): does not run on {platform}, only on {', '.join(kernel.platforms)}; use Einsum()"
        )
    module = e.model.build()
    apply = make_apply(module)
    inputs = e.model.example_inputs(e.data.batch_size // e.accum_steps, e.data.seq_len)
    shapes, axes = abstract_params(module, *inputs)
    check_heads(e, axes, mesh.shape)
    own = {"apply": apply, "params": shapes, "mesh": mesh}
    named = [axes]
    tuning, frozen, rates = None, None, None
    if isinstance(e.peft, PEFTMethod):
        if sums is not None and not e.peft.by_layer:
            field, told = (
                "peft.hidden_dim",
                f"is for whole models, and mesh.stage={mesh.shape['stage']} cuts this one",
            )
            raise FieldError(field, getattr(e.peft, "hidden_dim", ""), f"{told}; use None")
        tuning = attach(e.peft, module, *inputs, head=heads(shapes))
        check_blocks(e, tuning, mesh.shape)
        apply, frozen = tuning.apply(apply), jax.eval_shape(tuning.frozen, shapes)
        shapes, axes = jax.eval_shape(tuning.init, jax.random.key(0), shapes), tuning.axes
        rates = tuning.rates(shapes)
        named.append(axes)
    apply = apply if mesh.size == 1 else _needs_context(apply, dict(mesh.shape))
    check_names(e, named, **own)
    optimizer, schedule = make_optimizer(e.optim, e.num_steps, axes, rates)
    policy = e.model.policy
    loss_scale = e.loss_scale if policy is not None and policy.compute_dtype == "float16" else None
    abstract = jax.eval_shape(lambda p, f: new_state(p, optimizer, e.seed, loss_scale, f), shapes, frozen)
    layout = state_shardings(abstract, axes, e.sharding, mesh, tuning and tuning.frozen_axes)
    gradients = gradient_shardings(shapes, axes, e.sharding, mesh)
    updated = update_shardings(shapes, axes, e.sharding, mesh)
    check_axes(e, (layout, gradients, updated), **own)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, layout)
    by_parts = lambda: Offload(optimizer, abstract, axes, layerwise=e.optim.name in LAYERWISE)
    rows = PartitionSpec(as_tuple(e.sharding.activations.get("batch")) or None)
    batch_sharding = NamedSharding(mesh, rows)
    whole = NamedSharding(mesh, PartitionSpec())

    def begin() -> TrainState:
        # The same numbers on every mesh: keys are split by parameter, not by device.
        zeros = (np.zeros(x.shape, x.dtype) for x in inputs)
        return begin_from(init_params(module, jax.random.key(e.seed), *zeros))

    def begin_from(params: Any) -> TrainState:
        if tuning is None:
            return new_state(params, optimizer, e.seed, loss_scale)
        tuned = tuning.init(jax.random.fold_in(jax.random.key(e.seed), TUNED), params)
        return new_state(tuned, optimizer, e.seed, loss_scale, tuning.frozen(params))

    step = make_step(
        apply,
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
    stack = batch_sharding
    if e.steps_per_call > 1:
        step = many_steps(step)
        stack = NamedSharding(mesh, PartitionSpec(None, *rows))
    within = functools.partial(_within, mesh, e.sharding)
    eval_step = make_eval_step(apply, e.objective)
    return Program(
        experiment=e,
        mesh=mesh,
        apply=apply,
        axes=axes,
        abstract=abstract,
        init=within(jax.jit(begin, out_shardings=layout)),
        step=within(jax.jit(step, in_shardings=(layout, stack), out_shardings=(layout, whole), donate_argnums=0)),
        eval_step=within(jax.jit(eval_step, in_shardings=(layout.model, batch_sharding), out_shardings=whole)),
        batch_sharding=batch_sharding,
        start=within(jax.jit(begin_from, out_shardings=layout)),
        tuning=tuning,
    )


def heads(shapes: Any) -> tuple[str, ...]:
    """Patterns of what stands beside the trunk of a fine-tuned model: new, so trained whole whatever the method."""
    return tuple(f"{name}/*" for name in shapes if name != "trunk") if "trunk" in shapes else ()


def _needs_context(apply: Callable, sizes: dict[str, int]) -> Callable:
    """`apply` of a program over several devices: an error outside the context, where its layout would be lost."""

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
    """fn, traced and run in the context of the mesh and the tables; `fn.lower` and `fn.trace` too."""

    @functools.wraps(fn)
    def call(*args, **kwargs):
        with _context(mesh, sharding, {}):
            return fn(*args, **kwargs)

    for name in ("lower", "trace"):
        if hasattr(fn, name):
            setattr(call, name, _within(mesh, sharding, getattr(fn, name)))
    return call


def _context(mesh, sharding, changed) -> contextlib.ExitStack:
    activations, kept = {**sharding.activations, **changed}, sharding.params
    used, gradients = sharding.used, kept if sharding.gradients is None else sharding.gradients
    same = all(as_tuple(kept.get(name)) == as_tuple(used.get(name)) == as_tuple(gradients.get(name)) for name in kept)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        stack.enter_context(axis_rules(activations) if same else axis_rules(activations, used, gradients))
        return stack.pop_all()
