"""Gradients of a training step over pipeline stages.

The model is split at its layer stack; model code needs no changes. The parts before and after the stack (embedding,
output projection, loss) run on all stages at once, for every microbatch. No stage waits for another there, and the
rules apply as usual, such as a vocabulary split over ("stage", "tensor"). Under 1F1B these parts run within the ticks
(`sharding/pipeline.py`).

The results equal those of `step.sum_gradients` with the same number of microbatches: same rows, same dropout.

Shape legend: M microbatches, B batch, L layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnlp.errors import FieldError
from jaxnlp.nn.sharded_rng import local_key, plain_key
from jaxnlp.nn.stack import ScannedLayers, override_stack
from jaxnlp.objectives.objective import Objective
from jaxnlp.sharding.pipeline import (
    Naive,
    OneFOneB,
    Schedule,
    check_stages,
    in_float32,
    named_schedule,
    one_f_one_b,
    through_stages,
)
from jaxnlp.sharding.rules import as_tuple
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.step import sum_gradients as unpipelined
from jaxnlp.trees import get_at, set_at, without

ONE_STACK = "supports one layer stack, and an encoder-decoder has two; use GPipe(), or 'gpipe' on the command line"


def make_sum_gradients(experiment: Experiment, stages: int) -> Callable:
    """`sum_gradients` with the experiment's pipeline schedule, for `make_step`.

    Raises:
        FieldError: the model or the batch cannot be split as the schedule requires.
    """
    model, schedule = experiment.model.body, named_schedule(experiment.sharding.pipeline)
    prefix = "model" if model is experiment.model else "model.body"
    if model.scan_layers is None:
        raise FieldError("sharding.mesh.stage", stages, f"{type(model).__name__} has no layer stack to split; use 1")
    if not model.scan_layers:
        raise FieldError(f"{prefix}.scan_layers", False, f"mesh.stage={stages} splits stacked layers; set it to True")
    if isinstance(schedule, OneFOneB) and model.kind == "encoder-decoder":
        raise FieldError("sharding.pipeline", experiment.sharding.pipeline, ONE_STACK)
    for field, count in (("num_layers", model.num_layers), ("num_decoder_layers", model.num_decoder_layers)):
        if count is not None:
            check_stages(schedule, stages, count, experiment.accum_steps, f"{prefix}.{field}")
    batch_axes = as_tuple(experiment.sharding.activations.get("batch"))
    return functools.partial(sum_gradients, schedule=schedule, batch_axes=batch_axes)


def sum_gradients(
    apply: Callable,
    objective: Objective,
    params: Any,
    batch: Any,
    key: jax.Array,
    accum_steps: int,
    scale: Any = None,
    layout: Any = None,
    *,
    schedule: Schedule,
    batch_axes: tuple[str, ...],
):
    """`step.sum_gradients` with a pipeline schedule over the mesh's stages. There are `accum_steps` microbatches.

    Args:
        schedule: a schedule of `sharding/pipeline.py`. batch_axes: mesh axes that split the batch.

    Raises:
        FieldError: the model cannot be split as the schedule requires.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    stages, batch_axes = sizes["stage"], tuple(axis for axis in batch_axes if sizes[axis] > 1)
    if stages == 1:
        return unpipelined(apply, objective, params, batch, key, accum_steps, scale, layout)
    micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accum_steps, *x.shape[1:]), 1, 0), batch)
    stacks = _stacks(apply, objective, params, micro, key)
    for stack in stacks:
        check_stages(schedule, stages, stack.layers.config.num_layers, accum_steps)
    staged = _Staged(objective, schedule, stacks, batch_axes)
    if isinstance(schedule, Naive):
        return unpipelined(apply, staged, params, batch, key, accum_steps, scale, layout)
    place = (lambda grads: grads) if layout is None else (lambda g: jax.lax.with_sharding_constraint(g, layout))
    if isinstance(schedule, OneFOneB):
        sums, grads = staged.one_f_one_b(apply, params, micro, _keys(key, accum_steps), scale)
        return sums, place(grads)

    def loss(params):
        total, weight, extra = staged.of(apply, params, micro, _keys(key, accum_steps))
        return total if scale is None else total * scale, (total, weight, extra)

    grads, sums = jax.grad(loss, has_aux=True)(params)
    return sums, place(jax.tree.map(lambda g: g.astype(jnp.float32), grads))


def _keys(key: jax.Array, accum_steps: int) -> jax.Array:
    """The key of each microbatch, folded as in `step.sum_gradients`."""
    if accum_steps == 1:
        return key[None]
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(accum_steps))


@dataclasses.dataclass(frozen=True)
class _Stack:
    """A layer stack of the model. layers: the stack as traced, with abstract arrays. by_row: for each array in
    `shared`, whether its leading axis is the batch."""

    layers: ScannedLayers
    by_row: list[bool]

    def arrays(self, shared: Any) -> list[jax.Array]:
        """The arrays among the values that the layers share. The other values are the same for every microbatch."""
        return [leaf for leaf in jax.tree.leaves(shared) if _is_array(leaf)]

    def with_arrays(self, arrays: list[jax.Array]) -> tuple[Any, ...]:
        """The shared values with these arrays: the inverse of `arrays`."""
        leaves, tree = jax.tree.flatten(self.layers.shared)
        remaining = iter(arrays)
        return jax.tree.unflatten(tree, [next(remaining) if _is_array(leaf) else leaf for leaf in leaves])


class _Reached(Exception):
    """Raised at the input of the requested stack, with that input."""


def _stacks(apply, objective, params, micro, key) -> list[_Stack]:
    """The layer stacks of the model, in the order in which they run."""
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), micro)
    twice = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2 * x.shape[0], *x.shape[1:]), x.dtype), rows)

    def traced(rows):
        stacks: list[ScannedLayers] = []

        def skip(x, layers):
            stacks.append(layers)
            return x

        def run(params, rows, key):
            with override_stack(skip):
                objective.loss(apply, params, rows, key)
            return 0

        jax.eval_shape(run, params, rows, key)
        return stacks

    stacks = []
    for layers, doubled in zip(traced(rows), traced(twice), strict=True):
        pairs = zip(*(filter(_is_array, jax.tree.leaves(x.shared)) for x in (layers, doubled)), strict=True)
        stacks.append(_Stack(layers, [a.shape != b.shape for a, b in pairs]))
    if not stacks:
        raise FieldError("model.scan_layers", False, "mesh.stage splits stacked layers; set it to True")
    return stacks


@dataclasses.dataclass(frozen=True)
class _Staged:
    """An objective whose model runs over pipeline stages. `loss` runs one microbatch, as an objective does."""

    objective: Objective
    schedule: Schedule
    stacks: list[_Stack]
    batch: tuple[str, ...]

    def loss(self, apply, params, rows, key):
        return self.of(apply, params, jax.tree.map(lambda x: x[None], rows), key[None])

    def of(self, apply, params, micro, keys):
        """(total, weight, metrics), summed over microbatches micro (M, B, ...). Its gradient is by autodiff."""
        weights, other_params = self._split_params(params)
        raw, outputs = jax.random.key_data(keys), ()
        for stack, w in zip(self.stacks, weights, strict=True):
            x_MB, arrays, layer_keys = self._before(apply, other_params, micro, raw, outputs, stack)
            inputs = (w, x_MB, arrays, stack.by_row, layer_keys, self.batch)
            outputs = (*outputs, through_stages(self.schedule, self._run(stack), *inputs, stack.layers.remat_policy))
        return self._after(apply, other_params, micro, raw, outputs)

    def one_f_one_b(self, apply, params, micro, keys, scale):
        """(sums, gradients) under the 1F1B schedule."""
        if len(self.stacks) > 1:
            raise FieldError("sharding.pipeline", self.schedule, ONE_STACK)
        (stack,) = self.stacks
        (weights,), other_params = self._split_params(params)

        def first(params, microbatch):
            rows, raw = microbatch
            x, arrays, raw = self._stack_input(apply, params, rows, raw, ())
            return x, arrays, raw

        def last(params, microbatch, y):
            rows, raw = microbatch
            total, weight, extra = self._loss(apply, params, rows, raw, (y,))
            return total if scale is None else total * scale, (total, weight, extra)

        inputs = (micro, jax.random.key_data(keys))
        sums, *grads = one_f_one_b(first, self._run(stack), last, weights, other_params, inputs, self.batch)
        return sums, self._put(*grads)

    def _split_params(self, params):
        """(the parameters of each stack, all other parameters)."""
        weights = []
        for stack in self.stacks:
            weights.append(get_at(params, stack.layers.path))
            params = without(params, stack.layers.path)
        return weights, params

    def _put(self, weights, other_params):
        return set_at(other_params, self.stacks[0].layers.path, weights)

    def _run(self, stack: _Stack):
        def run(weights, x, arrays, raw):
            keys = None if raw is None else self._local(raw)
            return stack.layers.run(weights, x, stack.with_arrays(arrays), keys)

        return run

    def _local(self, raw):
        """The keys of this device's rows, if the batch is split over devices; else the keys unchanged."""
        keys = jax.random.wrap_key_data(raw)
        return local_key(keys, jax.lax.axis_index(self.batch)) if self.batch else keys

    def _stack_input(self, apply, params, rows, raw, outputs):
        """(x, shared arrays, raw keys) of one microbatch at the input of stack number len(outputs)."""

        def reach(x, layers):
            reached_layers.append(layers)
            if len(reached_layers) > len(outputs):
                raise _Reached((x, layers))
            return outputs[len(reached_layers) - 1]

        reached_layers: list[ScannedLayers] = []
        try:
            with override_stack(reach):
                self.objective.loss(apply, params, rows, self._local(raw))
        except _Reached as reached:
            x, layers = reached.args[0]
        else:
            raise AssertionError("the model runs fewer stacks than when it was traced")
        raw = None if layers.keys is None else jax.random.key_data(plain_key(layers.keys))
        return x, self.stacks[len(outputs)].arrays(layers.shared), raw

    def _loss(self, apply, params, rows, raw, outputs):
        """The objective's sums for one microbatch, given the output of each stack."""
        remaining = iter(outputs)
        with override_stack(lambda x, layers: next(remaining)):
            return self.objective.loss(apply, params, rows, self._local(raw))

    def _before(self, apply, params, micro, raw, outputs, stack: _Stack):
        """`_stack_input` for every microbatch, on each device's rows."""
        rows, replicated = PartitionSpec(None, self.batch or None), PartitionSpec()

        params, narrow = in_float32(params)

        def before(params, micro, raw, outputs):
            # A loop: XLA's partitioner fails on many gathers at once, from a split vocabulary into a split length.
            input_of = lambda inputs: self._stack_input(apply, narrow(params), *inputs)
            return jax.lax.map(input_of, (micro, raw, outputs))

        out = (rows, [rows if by else replicated for by in stack.by_row], replicated)
        return self._manual(before, (replicated, rows, replicated, rows), out)(params, micro, raw, outputs)

    def _after(self, apply, params, micro, raw, outputs):
        """The objective's sums over all microbatches, one at a time, so that one microbatch's logits are in memory."""
        rows, replicated = PartitionSpec(None, self.batch or None), PartitionSpec()
        params, narrow = in_float32(params)

        def after(params, micro, raw, outputs):
            sums_of = jax.checkpoint(lambda params, *inputs: self._loss(apply, narrow(params), *inputs))
            first_inputs = jax.tree.map(lambda x: x[0], (micro, raw, outputs))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(sums_of, params, *first_inputs))
            add = lambda sums, inputs: (jax.tree.map(jnp.add, sums, sums_of(params, *inputs)), None)
            sums = jax.lax.scan(add, zeros, (micro, raw, outputs))[0]
            return jax.tree.map(lambda x: x[None], sums)

        out = PartitionSpec(self.batch or None)
        sums = self._manual(after, (replicated, rows, replicated, rows), out)(params, micro, raw, outputs)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

    def _manual(self, fn, in_specs, out_specs):
        if not self.batch:
            return fn
        return jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, axis_names=set(self.batch), check_vma=False)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)
