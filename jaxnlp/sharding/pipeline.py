"""Pipeline parallelism: the layers are cut into stages, a batch into microbatches, and a schedule says who runs what.

A schedule here is a config, a timetable to look at, and one SPMD program: every stage runs the same loop over ticks,
and after each tick hands what it computed to the next stage (a collective-permute). A stage that has nothing to do in
a tick computes on data that is let go. The share of such work, or of waiting, is the bubble.

    Naive       1 - 1/p                        one stage at a time, one microbatch after the other
    GPipe       (p - 1) / (m + p - 1)          all forward, then all backward (Huang et al. 2019, arXiv:1811.06965)
    OneFOneB    2 (p - 1) / (m + 2 (p - 1))    a forward and a backward in each tick
    Circular    (p - 1) / (v m + p - 1)        v virtual stages, each 1/v as deep (Narayanan et al. 2021,
                                               arXiv:2104.04473, section 2.2)

with p stages and m microbatches. In 1F1B as Narayanan et al. 2019 (PipeDream-Flush) have it a stage runs a forward or
a backward pass, each in its own time, and the bubble is GPipe's; in one SPMD program all stages keep step, a tick is
both passes, and the bubble is what is given above. Its merit is memory, which does not grow with m.

Shape legend: M microbatches, B batch, L layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnlp.errors import FieldError

STAGE = "stage"


@dataclasses.dataclass(kw_only=True)
class Naive:
    """One microbatch after the other, through all stages and back; all stages but one wait. The baseline."""

    virtual_stages: ClassVar[int] = 1


@dataclasses.dataclass(kw_only=True)
class GPipe:
    """All microbatches forward, then all backward. What is kept of the forward passes grows with the microbatches."""

    virtual_stages: ClassVar[int] = 1


@dataclasses.dataclass(kw_only=True)
class OneFOneB:
    """Each tick a forward and a backward; a stage keeps the inputs of at most 2p - 1 microbatches and runs them again.

    The embedding and the output map run on every stage, in step with the first and the last, which use them. Not for
    encoder-decoders.
    """

    virtual_stages: ClassVar[int] = 1


@dataclasses.dataclass(kw_only=True)
class Circular:
    """Each stage has `virtual_stages` groups of layers, and a microbatch passes all stages that many times.

    Microbatches go in groups of as many as there are stages, as in Megatron-LM, so that one that comes round is run
    at once and none waits in memory. Layers are stored in order on the stages, and exchanged for those of each stage's
    virtual stages at the start of each step.
    """

    virtual_stages: int = 2

    def check(self) -> None:
        if self.virtual_stages < 1:
            raise FieldError("virtual_stages", self.virtual_stages, "expected a positive number, as 2")


SCHEDULES = {"naive": Naive, "gpipe": GPipe, "1f1b": OneFOneB, "circular": Circular}


def named_schedule(named: Any) -> Any:
    """A schedule, or the one of that name, as "1f1b". Raises FieldError for what is neither."""
    if isinstance(named, str) and named in SCHEDULES:
        return SCHEDULES[named]()
    if not isinstance(named, tuple(SCHEDULES.values())):
        known = f"expected one of {', '.join(SCHEDULES)}, or a schedule as Circular(virtual_stages=3)"
        raise FieldError("pipeline", named, known)
    return named


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage runs at a time: a microbatch's pass through its layers of one lap."""

    microbatch: int
    forward: bool
    lap: int = 0


Timetable = list[list[Work | None]]


def check_stages(
    schedule: Any, stages: int, num_layers: int, microbatches: int, field: str = "model.num_layers"
) -> None:
    """Raises FieldError where a model or a batch cannot be cut as the schedule needs."""
    groups, name = stages * schedule.virtual_stages, type(schedule).__name__
    if num_layers % groups:
        virtual_stages = f" x virtual_stages={schedule.virtual_stages}" if schedule.virtual_stages > 1 else ""
        near = max(round(num_layers / groups), 1) * groups
        raise FieldError(
            field, num_layers, f"does not divide over mesh.stage={stages}{virtual_stages} stages; use {near}"
        )
    if schedule.virtual_stages > 1 and microbatches % stages:
        up = -(-microbatches // stages) * stages
        raise FieldError("accum_steps", microbatches, f"{name}() needs a multiple of mesh.stage={stages}; use {up}")


def ticks(schedule: Any, stages: int, microbatches: int) -> int:
    """Ticks of the forward passes, and as many of the backward: half the collective-permutes of a step."""
    p, m = stages, microbatches
    if isinstance(schedule, Naive):
        return m * p
    if isinstance(schedule, OneFOneB):
        return m + 2 * (p - 1)
    return schedule.virtual_stages * m + p - 1


def bubble(schedule: Any, stages: int, microbatches: int) -> float:
    """The share of time in which a stage does nothing of use, by the formula; forward and backward count alike."""
    return 1 - schedule.virtual_stages * microbatches / ticks(schedule, stages, microbatches)


def timetable(schedule: Any, stages: int, microbatches: int) -> Timetable:
    """What each stage runs in each slot of time, or None. Under 1F1B a tick is two slots, forward and backward."""
    p, m = stages, microbatches
    if isinstance(schedule, Naive):
        one = lambda i, at, forward: [Work(i, forward) if s == at else None for s in range(p)]
        there_and_back = [(s, True) for s in range(p)] + [(s, False) for s in reversed(range(p))]
        return [one(i, at, forward) for i in range(m) for at, forward in there_and_back]
    count = ticks(schedule, p, m)
    if isinstance(schedule, OneFOneB):
        work = lambda i, forward: Work(i, forward) if 0 <= i < m else None
        forward = lambda t: [work(t - s, True) for s in range(p)]
        backward = lambda t: [work(t - (2 * (p - 1) - s), False) for s in range(p)]
        return [slot(t) for t in range(count) for slot in (forward, backward)]

    def at(k, forward):
        if not 0 <= k < schedule.virtual_stages * m:
            return None
        lap, i = item(k, p, schedule.virtual_stages)
        return Work(i, forward, lap)

    both = [(t, True) for t in range(count)] + [(t, False) for t in reversed(range(count))]
    return [[at(t - s, forward) for s in range(p)] for t, forward in both]


def idle(table: Timetable) -> float:
    """The bubble, counted."""
    return sum(work is None for slot in table for work in slot) / (len(table) * len(table[0]))


def item(k: Any, stages: int, virtual_stages: int) -> tuple[Any, Any]:
    """(virtual stage, microbatch) of the k-th unit of work of a stage; p microbatches pass all virtual stages."""
    if virtual_stages == 1:
        return k * 0, k
    group, rest = k // (stages * virtual_stages), k % (stages * virtual_stages)
    return rest // stages, group * stages + rest % stages


Run = Callable[[Any, jax.Array, Any, Any], jax.Array]


def through_stages(
    schedule: Any,
    run: Run,
    weights: Any,
    x_MB: jax.Array,
    shared: Any,
    by_row: Any,
    keys: Any,
    batch: tuple[str, ...],
    kept: Callable = lambda *_, **__: True,
) -> jax.Array:
    """Every microbatch through every stage, to be differentiated: the backward pass is the schedule in reverse.

    The axes of the batch are manual here, so that the gradients of the weights are summed over the ticks on each
    device, and over the devices once.

    Args:
        run: (weights, x, shared, keys) -> x through layers in a row, of one microbatch, on one device's rows.
        weights: leaves (L, ...), split over stages. x_MB: what enters the first layer.
        shared: leaves (M, ...), what every layer of a microbatch reads; by_row: for each, whether its next axis is B.
        keys: (M, L, words), raw, or None. batch: mesh axes that split B.
        kept: a policy of `jax.checkpoint`, of what `run` computes: what of each tick is kept for the backward pass.

    Returns:
        As x_MB, what leaves the last layer, on every stage.
    """
    p, v, m = _stages(), schedule.virtual_stages, x_MB.shape[0]
    count = v * m + p - 1
    ring = [(i, (i + 1) % p) for i in range(p)]
    rows = PartitionSpec(None, batch or None)
    shared_specs = jax.tree.map(lambda by: rows if by else PartitionSpec(), by_row)
    lapped = lambda leaf: _by_stage(leaf, p, v)
    entering = [item(min(t, v * m - 1), p, v)[1] for t in range(count)]
    leaving = sorted((i, t + p - 1) for t in range(v * m) for lap, i in [item(t, p, v)] if lap == v - 1)

    def stage(weights, x_MB, shared, keys):
        s = jax.lax.axis_index(STAGE)
        weights, keys = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (weights, keys))
        x_MB = narrow_x(x_MB)

        @functools.partial(jax.checkpoint, policy=functools.partial(_all_but_slices, kept), prevent_cse=False)
        def work(weights, shared, keys, x, lap, i):
            key = None if keys is None else _at(_at(keys, lap), i)
            return run(narrow(_at(weights, lap)), x, narrow_shared(_at(shared, i)), key)

        def tick(x, now):
            t, fresh = now
            k = jnp.clip(t - s, 0, v * m - 1)
            lap, i = item(k, p, v)
            # Out of turn a stage runs some microbatch again, and nobody looks.
            x = jnp.where((t < s) | (t - s >= v * m) | ((s == 0) & (lap == 0)), fresh, x)
            y = work(weights, shared, keys, x, lap, i)
            return jax.lax.ppermute(y, STAGE, ring), y

        fresh = x_MB[jnp.asarray(entering)]
        _, y = jax.lax.scan(tick, jnp.zeros_like(x_MB[0]), (jnp.arange(count), fresh))
        return y[jnp.asarray([t for _, t in leaving])][None]

    weights, narrow = in_float32(weights)
    x_MB, narrow_x = in_float32(x_MB)
    shared, narrow_shared = in_float32(shared)
    if keys is not None:  # as (stages, virtual_stages, M, layers of a lap, words)
        keys = jnp.moveaxis(lapped(jnp.moveaxis(keys, 1, 0)), 3, 2)
    out = jax.shard_map(
        stage,
        in_specs=(PartitionSpec(STAGE), rows, shared_specs, PartitionSpec(STAGE)),
        out_specs=PartitionSpec(STAGE, *rows),
        axis_names={STAGE, *batch},
        check_vma=False,
    )(jax.tree.map(lapped, weights), x_MB, shared, keys)
    return out[-1]


def one_f_one_b(first: Callable, run: Run, last: Callable, weights: Any, params: Any, inputs: Any, batch: Any):
    """Sums over the microbatches, and gradients, of last(run(first)), a forward and a backward pass in each tick.

    A stage keeps its inputs of 2p - 1 microbatches in a ring, and runs its layers again on the way back: what it keeps
    does not hang on the number of microbatches.

    Args:
        first: (params, input) -> (x, shared, keys): of a microbatch, what enters the first layer and all layers.
        last: (params, input, y) -> (value to differentiate, sums). weights: leaves (L, ...), split over stages.
        inputs: leaves (M, B, ...), or (M, words) of raw keys, which every device has whole.

    Returns:
        (sums, gradients of weights, gradients of params), the latter in float32.
    """
    p, m = _stages(), jax.tree.leaves(inputs)[0].shape[0]
    count, held = m + 2 * (p - 1), 2 * p - 1
    down, up = [(i, i + 1) for i in range(p - 1)], [(i + 1, i) for i in range(p - 1)]

    def stage(weights, params, inputs):
        s = jax.lax.axis_index(STAGE)
        n = jax.tree.leaves(weights)[0].shape[0]

        def layers(weights, params, given, x):
            x_first, shared, keys = first(params, given)
            own = None if keys is None else jax.lax.dynamic_slice_in_dim(keys, s * n, n)
            return run(weights, jnp.where(s == 0, x_first, x), shared, own)

        def whole(weights, params, given, x):
            y = layers(weights, params, given, x)
            value, sums = last(params, given, y)
            return (y, value), sums

        def tick(carry, t):
            x, g, ring, total = carry
            i, j = t - s, t - (2 * (p - 1) - s)  # the microbatches that go forward, and back
            now, back = _at(inputs, jnp.clip(i, 0, m - 1)), _at(inputs, jnp.clip(j, 0, m - 1))
            # Out of turn the ring is written at no place that is still to be read.
            ring = jax.lax.dynamic_update_index_in_dim(ring, x, jnp.mod(i, held), 0)
            y = layers(weights, params, now, x)
            kept = _at(ring, jnp.mod(j, held))
            pulled = lambda w, params, x: whole(w, params, back, x)
            (y_back, value), pull, sums = jax.vjp(pulled, weights, params, kept, has_aux=True)
            valid, is_last = (j >= 0) & (j < m), s == p - 1
            g = jnp.where(valid & ~is_last, g, 0).astype(y_back.dtype)
            one = (valid & is_last).astype(value.dtype)
            dw, dparams, dx = pull((g, one))
            keep = lambda ok, tree: jax.tree.map(lambda leaf: jnp.where(ok, leaf, 0), tree)
            new = (keep(valid & is_last, sums), keep(valid, dw), keep(valid, dparams))
            total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, new)
            return (jax.lax.ppermute(y, STAGE, down), jax.lax.ppermute(dx, STAGE, up), ring, total), None

        x, _, _ = jax.eval_shape(first, params, _at(inputs, 0))
        _, sums = jax.eval_shape(last, params, _at(inputs, 0), x)
        zeros = lambda tree, dtype=None: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype or leaf.dtype), tree)
        total = (zeros(sums), zeros(weights, jnp.float32), zeros(params, jnp.float32))
        carry = (zeros(x), zeros(x), jnp.zeros((held, *x.shape), x.dtype), total)
        total = jax.lax.scan(tick, carry, jnp.arange(count))[0][3]
        return jax.tree.map(lambda leaf: leaf[None], total)

    everywhere = PartitionSpec((STAGE, *batch))
    by_rows = jax.tree.map(lambda leaf: PartitionSpec(None, batch or None), inputs[0])
    total = jax.shard_map(
        stage,
        in_specs=(PartitionSpec(STAGE), PartitionSpec(), (by_rows, PartitionSpec())),
        out_specs=(everywhere, PartitionSpec(batch or None, STAGE), everywhere),
        axis_names={STAGE, *batch},
        check_vma=False,
    )(weights, params, inputs)
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), total)


def in_float32(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
    """(leaves of lower precision in float32, the way back): for what a `shard_map` and a loop in it read.

    Its gradients are then summed in float32 over the loop's turns and the devices. XLA's CPU backend dies of such a sum
    in bfloat16.
    """
    kinds = jax.tree.map(lambda leaf: leaf.dtype, tree)
    wider = lambda kind: jnp.promote_types(kind, jnp.float32) if jnp.issubdtype(kind, jnp.floating) else kind
    wide = jax.tree.map(lambda leaf: leaf.astype(wider(leaf.dtype)), tree)
    return wide, lambda leaves: jax.tree.map(lambda leaf, kind: leaf.astype(kind), leaves, kinds)


def _all_but_slices(kept: Callable, primitive: Any, *args: Any, **params: Any) -> Any:
    """`kept`, but for slices: else each tick would keep a copy of its lap's weights for the backward pass."""
    return primitive not in _SLICES and kept(primitive, *args, **params)


_SLICES = (jax.lax.dynamic_slice_p, jax.lax.squeeze_p, jax.lax.convert_element_type_p)


def _stages() -> int:
    return jax.sharding.get_abstract_mesh().shape[STAGE]


def _by_stage(leaf: jax.Array, stages: int, virtual_stages: int) -> jax.Array:
    """(L, ...) as (stages, virtual_stages, layers, ...): stage s has the groups of layers s, s + p, s + 2p, ..."""
    grouped = leaf.reshape(virtual_stages, stages, -1, *leaf.shape[1:])
    return jnp.swapaxes(grouped, 0, 1)


def _at(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, 0, keepdims=False), tree)
