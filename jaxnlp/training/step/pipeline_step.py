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
from jaxnlp.sharding.pipeline import (
    Naive,
    OneFOneB,
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

ONE_STACK = "runs one stack, and an encoder-decoder has two; use GPipe(), in a config or as 'gpipe' on the command line"


def staged(experiment: Experiment, stages: int) -> Callable:
    """`sum_gradients` with the experiment's pipeline schedule, for `make_step`.

    Raises:
        FieldError: the model or the batch cannot be split as the schedule requires.
    """
    model, schedule = experiment.model.body, named_schedule(experiment.sharding.pipeline)
    where = "model" if model is experiment.model else "model.body"
    if model.scan_layers is None:
        raise FieldError("sharding.mesh.stage", stages, f"{type(model).__name__} has no stack of layers to cut; use 1")
    if not model.scan_layers:
        raise FieldError(f"{where}.scan_layers", False, f"mesh.stage={stages} cuts stacked layers; set it to True")
    if isinstance(schedule, OneFOneB) and model.kind == "encoder-decoder":
        raise FieldError("sharding.pipeline", experiment.sharding.pipeline, ONE_STACK)
    for field, count in (("num_layers", model.num_layers), ("num_decoder_layers", model.num_decoder_layers)):
        if count is not None:
            check_stages(schedule, stages, count, experiment.accum_steps, f"{where}.{field}")
    batch_axes = as_tuple(experiment.sharding.activations.get("batch"))
    return functools.partial(sum_gradients, schedule=schedule, batch_axes=batch_axes)


def sum_gradients(
    apply: Callable,
    objective: Any,
    params: Any,
    batch: Any,
    key: jax.Array,
    accum_steps: int,
    scale: Any = None,
    layout: Any = None,
    *,
    schedule: Any,
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
    cuts = _cuts(apply, objective, params, micro, key)
    for cut in cuts:
        check_stages(schedule, stages, cut.layers.config.num_layers, accum_steps)
    staged = _Staged(objective, schedule, cuts, batch_axes)
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
class _Cut:
    """A layer stack of the model. layers: the stack as traced, with abstract arrays. by_row: for each array in
    `shared`, whether its leading axis is the batch."""

    layers: ScannedLayers
    by_row: list[bool]

    def arrays(self, shared: Any) -> list[jax.Array]:
        """The arrays among the values that the layers share. The other values are the same for every microbatch."""
        return [leaf for leaf in jax.tree.leaves(shared) if _is_array(leaf)]

    def whole(self, arrays: list[jax.Array]) -> tuple[Any, ...]:
        """The shared values with these arrays: the inverse of `arrays`."""
        leaves, tree = jax.tree.flatten(self.layers.shared)
        given = iter(arrays)
        return jax.tree.unflatten(tree, [next(given) if _is_array(leaf) else leaf for leaf in leaves])


class _Reached(Exception):
    """Raised at the input of the requested stack, with that input."""


def _cuts(apply, objective, params, micro, key) -> list[_Cut]:
    """The layer stacks of the model, in the order in which they run."""
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), micro)
    twice = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2 * x.shape[0], *x.shape[1:]), x.dtype), rows)

    def traced(rows):
        seen: list[ScannedLayers] = []

        def skip(x, layers):
            seen.append(layers)
            return x

        def run(params, rows, key):
            with override_stack(skip):
                objective.loss(apply, params, rows, key)
            return 0

        jax.eval_shape(run, params, rows, key)
        return seen

    cuts = []
    for one, two in zip(traced(rows), traced(twice), strict=True):
        pairs = zip(*(filter(_is_array, jax.tree.leaves(found.shared)) for found in (one, two)), strict=True)
        cuts.append(_Cut(one, [a.shape != b.shape for a, b in pairs]))
    if not cuts:
        raise FieldError("model.scan_layers", False, "mesh.stage cuts stacked layers; set it to True")
    return cuts


@dataclasses.dataclass(frozen=True)
class _Staged:
    """An objective whose model runs over pipeline stages. `loss` runs one microbatch, as an objective does."""

    objective: Any
    schedule: Any
    cuts: list[_Cut]
    batch: tuple[str, ...]

    def loss(self, apply, params, rows, key):
        return self.of(apply, params, jax.tree.map(lambda x: x[None], rows), key[None])

    def of(self, apply, params, micro, keys):
        """(total, weight, metrics), summed over microbatches micro (M, B, ...). Its gradient is by autodiff."""
        weights, rest = self._taken(params)
        raw, done = jax.random.key_data(keys), ()
        for cut, w in zip(self.cuts, weights, strict=True):
            x_MB, arrays, layer_keys = self._before(apply, rest, micro, raw, done, cut)
            given = (w, x_MB, arrays, cut.by_row, layer_keys, self.batch)
            done = (*done, through_stages(self.schedule, self._run(cut), *given, cut.layers.remat_policy))
        return self._after(apply, rest, micro, raw, done)

    def one_f_one_b(self, apply, params, micro, keys, scale):
        """(sums, gradients) under the 1F1B schedule."""
        if len(self.cuts) > 1:
            raise FieldError("sharding.pipeline", self.schedule, ONE_STACK)
        (cut,) = self.cuts
        (weights,), rest = self._taken(params)

        def first(params, given):
            rows, raw = given
            x, arrays, raw = self._until(apply, params, rows, raw, ())
            return x, arrays, raw

        def last(params, given, y):
            rows, raw = given
            total, weight, extra = self._rest(apply, params, rows, raw, (y,))
            return total if scale is None else total * scale, (total, weight, extra)

        inputs = (micro, jax.random.key_data(keys))
        sums, *grads = one_f_one_b(first, self._run(cut), last, weights, rest, inputs, self.batch)
        return sums, self._put(*grads)

    def _taken(self, params):
        """(the parameters of each stack, all other parameters)."""
        weights = []
        for cut in self.cuts:
            weights.append(get_at(params, cut.layers.path))
            params = without(params, cut.layers.path)
        return weights, params

    def _put(self, weights, rest):
        return set_at(rest, self.cuts[0].layers.path, weights)

    def _run(self, cut: _Cut):
        def run(weights, x, arrays, raw):
            keys = None if raw is None else self._local(raw)
            return cut.layers.run(weights, x, cut.whole(arrays), keys)

        return run

    def _local(self, raw):
        """The keys of this device's rows, if the batch is split over devices; else the keys unchanged."""
        keys = jax.random.wrap_key_data(raw)
        return local_key(keys, jax.lax.axis_index(self.batch)) if self.batch else keys

    def _until(self, apply, params, rows, raw, done):
        """(x, shared arrays, raw keys) of one microbatch at the input of stack number len(done)."""

        def reach(x, layers):
            seen.append(layers)
            if len(seen) > len(done):
                raise _Reached((x, layers))
            return done[len(seen) - 1]

        seen: list[ScannedLayers] = []
        try:
            with override_stack(reach):
                self.objective.loss(apply, params, rows, self._local(raw))
        except _Reached as reached:
            x, layers = reached.args[0]
        else:
            raise AssertionError("a stack that was there when the model was cut")
        raw = None if layers.keys is None else jax.random.key_data(plain_key(layers.keys))
        return x, self.cuts[len(done)].arrays(layers.shared), raw

    def _rest(self, apply, params, rows, raw, done):
        """The objective's sums for one microbatch, given the output of each stack."""
        left = iter(done)
        with override_stack(lambda x, layers: next(left)):
            return self.objective.loss(apply, params, rows, self._local(raw))

    def _before(self, apply, params, micro, raw, done, cut: _Cut):
        """`_until` for every microbatch, on each device's rows."""
        rows, whole = PartitionSpec(None, self.batch or None), PartitionSpec()

        params, narrow = in_float32(params)

        def before(params, micro, raw, done):
            # A loop: XLA's partitioner fails on many gathers at once, from a split vocabulary into a split length.
            one = lambda given: self._until(apply, narrow(params), *given)
            return jax.lax.map(one, (micro, raw, done))

        out = (rows, [rows if by else whole for by in cut.by_row], whole)
        return self._manual(before, (whole, rows, whole, rows), out)(params, micro, raw, done)

    def _after(self, apply, params, micro, raw, done):
        """The objective's sums over all microbatches, one at a time, so that one microbatch's logits are in memory."""
        rows, whole = PartitionSpec(None, self.batch or None), PartitionSpec()
        params, narrow = in_float32(params)

        def after(params, micro, raw, done):
            one = jax.checkpoint(lambda params, *given: self._rest(apply, narrow(params), *given))
            first = jax.tree.map(lambda x: x[0], (micro, raw, done))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, params, *first))
            add = lambda sums, given: (jax.tree.map(jnp.add, sums, one(params, *given)), None)
            sums = jax.lax.scan(add, zeros, (micro, raw, done))[0]
            return jax.tree.map(lambda x: x[None], sums)

        out = PartitionSpec(self.batch or None)
        sums = self._manual(after, (whole, rows, whole, rows), out)(params, micro, raw, done)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

    def _manual(self, fn, in_specs, out_specs):
        if not self.batch:
            return fn
        return jax.shard_map(fn, in_specs=in_specs, out_specs=out_specs, axis_names=set(self.batch), check_vma=False)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)
