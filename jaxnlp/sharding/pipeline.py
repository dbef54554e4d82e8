"""Pipeline parallelism: layers are split into stages, a batch into microbatches.

A schedule says which microbatch each stage runs at each tick. It is a config, a timetable for display, and one SPMD
program: every stage runs the same loop over ticks and sends its output to the next stage after each tick (a
collective-permute). An idle stage computes on data that is discarded. The fraction of such idle work is the bubble.

    Naive       1 - 1/p                        one stage at a time, one microbatch after the other
    GPipe       (p - 1) / (m + p - 1)          all forward, then all backward (Huang et al. 2019, arXiv:1811.06965)
    OneFOneB    2 (p - 1) / (m + 2 (p - 1))    a forward and a backward in each tick
    Circular    (p - 1) / (v m + p - 1)        v virtual stages, each 1/v as deep (Narayanan et al. 2021,
                                               arXiv:2104.04473, section 2.2)

with p stages and m microbatches. In the 1F1B schedule of Narayanan et al. 2019 (PipeDream-Flush), a stage runs either
a forward or a backward pass at a time, and the bubble equals GPipe's. In one SPMD program all stages run in lockstep
and a tick contains both passes, which gives the bubble above. The advantage of 1F1B is that its memory does not grow
with m.

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
    """Baseline: one microbatch at a time, forward and backward through all stages, with one stage active at a time."""

    virtual_stages: ClassVar[int] = 1


@dataclasses.dataclass(kw_only=True)
class GPipe:
    """All microbatches forward, then all backward. Activation memory grows with the number of microbatches."""

    virtual_stages: ClassVar[int] = 1


@dataclasses.dataclass(kw_only=True)
class OneFOneB:
    """One forward and one backward pass per tick.

    A stage keeps the inputs of at most 2p - 1 microbatches and recomputes its layers in the backward pass. The
    embedding and the output projection run on every stage; only the first and the last stage use the results.
    Encoder-decoders are not supported.
    """

    virtual_stages: ClassVar[int] = 1


@dataclasses.dataclass(kw_only=True)
class Circular:
    """Interleaved schedule: each stage has `virtual_stages` groups of layers.

    A microbatch passes through all stages once for each group. Microbatches run in groups of `stages`, as in
    Megatron-LM, so that a microbatch that starts its next pass runs immediately and is not buffered. Layers are stored
    in order over the stages. At the start of each step they are exchanged, so that each stage holds the layers of its
    virtual stages.
    """

    virtual_stages: int = 2

    def check(self) -> None:
        if self.virtual_stages < 1:
            raise FieldError("virtual_stages", self.virtual_stages, "expected a positive number, as 2")


Schedule = Naive | GPipe | OneFOneB | Circular

SCHEDULES = {"naive": Naive, "gpipe": GPipe, "1f1b": OneFOneB, "circular": Circular}


def named_schedule(schedule: object) -> Schedule:
    """The schedule itself, or the schedule of that name, e.g. "1f1b". Raises FieldError for any other value."""
    if isinstance(schedule, str) and schedule in SCHEDULES:
        return SCHEDULES[schedule]()
    if not isinstance(schedule, Schedule):
        message = f"expected one of {', '.join(SCHEDULES)}, or a schedule as Circular(virtual_stages=3)"
        raise FieldError("pipeline", schedule, message)
    return schedule


@dataclasses.dataclass(frozen=True)
class Work:
    """One unit of work of a stage: the forward or backward pass of a microbatch through one virtual stage."""

    microbatch: int
    forward: bool
    virtual_stage: int = 0


Timetable = list[list[Work | None]]


def check_stages(
    schedule: Schedule, stages: int, num_layers: int, microbatches: int, field: str = "model.num_layers"
) -> None:
    """Raises FieldError if the layers or the microbatches do not divide over the stages as the schedule requires."""
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


def ticks(schedule: Schedule, stages: int, microbatches: int) -> int:
    """Number of ticks of the forward passes, equal to that of the backward passes: half of a step's permutes."""
    p, m = stages, microbatches
    if isinstance(schedule, Naive):
        return m * p
    if isinstance(schedule, OneFOneB):
        return m + 2 * (p - 1)
    return schedule.virtual_stages * m + p - 1


def bubble(schedule: Schedule, stages: int, microbatches: int) -> float:
    """Idle fraction of a stage's time, by the formula; forward and backward passes count as equally long."""
    return 1 - schedule.virtual_stages * microbatches / ticks(schedule, stages, microbatches)


def timetable(schedule: Schedule, stages: int, microbatches: int) -> Timetable:
    """The work of each stage in each time slot, or None if idle. A 1F1B tick has two slots: forward and backward."""
    p, m = stages, microbatches
    if isinstance(schedule, Naive):
        slot_at = lambda i, at, forward: [Work(i, forward) if s == at else None for s in range(p)]
        there_and_back = [(s, True) for s in range(p)] + [(s, False) for s in reversed(range(p))]
        return [slot_at(i, at, forward) for i in range(m) for at, forward in there_and_back]
    count = ticks(schedule, p, m)
    if isinstance(schedule, OneFOneB):
        work = lambda i, forward: Work(i, forward) if 0 <= i < m else None
        forward = lambda t: [work(t - s, True) for s in range(p)]
        backward = lambda t: [work(t - (2 * (p - 1) - s), False) for s in range(p)]
        return [slot(t) for t in range(count) for slot in (forward, backward)]

    def at(k, forward):
        if not 0 <= k < schedule.virtual_stages * m:
            return None
        virtual_stage, i = item(k, p, schedule.virtual_stages)
        return Work(i, forward, virtual_stage)

    passes = [(t, True) for t in range(count)] + [(t, False) for t in reversed(range(count))]
    return [[at(t - s, forward) for s in range(p)] for t, forward in passes]


def idle(table: Timetable) -> float:
    """The bubble as a fraction, counted in a timetable."""
    return sum(work is None for slot in table for work in slot) / (len(table) * len(table[0]))


def item(k: Any, stages: int, virtual_stages: int) -> tuple[Any, Any]:
    """(virtual stage, microbatch) of a stage's k-th unit of work; p microbatches run through all of them first."""
    if virtual_stages == 1:
        return k * 0, k
    group, offset = k // (stages * virtual_stages), k % (stages * virtual_stages)
    return offset // stages, group * stages + offset % stages


Run = Callable[[Any, jax.Array, Any, Any], jax.Array]


def through_stages(
    schedule: Schedule,
    run: Run,
    weights: Any,
    x_MB: jax.Array,
    shared: Any,
    by_row: Any,
    keys: Any,
    batch: tuple[str, ...],
    policy: Callable = lambda *_, **__: True,
) -> jax.Array:
    """Runs every microbatch through every stage; differentiable, with the reversed schedule as the backward pass.

    The batch axes are manual in this `shard_map`: weight gradients are summed over ticks on each device, then once
    over devices.

    Args:
        run: (weights, x, shared, keys) -> x after consecutive layers, for one microbatch on one device's rows.
        weights: leaves (L, ...), split over stages. x_MB: input of the first layer.
        shared: leaves (M, ...), read by every layer of a microbatch; by_row: for each, whether its next axis is B.
        keys: raw PRNG keys (M, L, words), or None. batch: mesh axes that split B.
        policy: a `jax.checkpoint` policy for `run`: which values of each tick are saved for the backward pass.

    Returns:
        Output of the last layer, like x_MB, on every stage.
    """
    p, v = _stages(), schedule.virtual_stages
    rows = PartitionSpec(None, batch or None)
    shared_specs = jax.tree.map(lambda by: rows if by else PartitionSpec(), by_row)
    by_stage = lambda leaf: _by_stage(leaf, p, v)
    weights, narrow = in_float32(weights)
    x_MB, narrow_x = in_float32(x_MB)
    shared, narrow_shared = in_float32(shared)
    if keys is not None:  # as (stages, virtual_stages, M, layers of a virtual stage, words)
        keys = jnp.moveaxis(by_stage(jnp.moveaxis(keys, 1, 0)), 3, 2)

    @functools.partial(jax.checkpoint, policy=functools.partial(_all_but_slices, policy), prevent_cse=False)
    def work(weights, shared, keys, x, virtual_stage, i):
        key = None if keys is None else _at(_at(keys, virtual_stage), i)
        return run(narrow(_at(weights, virtual_stage)), x, narrow_shared(_at(shared, i)), key)

    def stage(weights, x_MB, shared, keys):
        weights, keys = (jax.tree.map(lambda leaf: leaf[0], tree) for tree in (weights, keys))
        return _forward_ticks(functools.partial(work, weights, shared, keys), narrow_x(x_MB), p, v)[None]

    out = jax.shard_map(
        stage,
        in_specs=(PartitionSpec(STAGE), rows, shared_specs, PartitionSpec(STAGE)),
        out_specs=PartitionSpec(STAGE, *rows),
        axis_names={STAGE, *batch},
        check_vma=False,
    )(jax.tree.map(by_stage, weights), x_MB, shared, keys)
    return out[-1]


def _forward_ticks(work: Callable, x_MB: jax.Array, stages: int, virtual_stages: int) -> jax.Array:
    """All ticks of this stage: calls work(x, virtual_stage, microbatch) and sends the result to the next stage.

    Returns:
        What leaves this stage in the last virtual stage, like x_MB: on the last stage, the output of the last layer.
    """
    p, v, m = stages, virtual_stages, x_MB.shape[0]
    s, count = jax.lax.axis_index(STAGE), v * m + p - 1
    next_stage = [(i, (i + 1) % p) for i in range(p)]
    entering = [item(min(t, v * m - 1), p, v)[1] for t in range(count)]
    leaving = sorted((i, t + p - 1) for t in range(v * m) for group, i in [item(t, p, v)] if group == v - 1)

    def tick(x, now):
        t, fresh = now
        k = jnp.clip(t - s, 0, v * m - 1)
        virtual_stage, i = item(k, p, v)
        # A stage outside its schedule reruns some microbatch; the result is discarded.
        x = jnp.where((t < s) | (t - s >= v * m) | ((s == 0) & (virtual_stage == 0)), fresh, x)
        y = work(x, virtual_stage, i)
        return jax.lax.ppermute(y, STAGE, next_stage), y

    fresh = x_MB[jnp.asarray(entering)]
    _, y = jax.lax.scan(tick, jnp.zeros_like(x_MB[0]), (jnp.arange(count), fresh))
    return y[jnp.asarray([t for _, t in leaving])]


def one_f_one_b(first: Callable, run: Run, last: Callable, weights: Any, params: Any, inputs: Any, batch: Any):
    """Sums over microbatches and gradients of last(run(first)), with one forward and one backward pass per tick.

    A stage keeps its inputs of 2p - 1 microbatches in a ring buffer and recomputes its layers in the backward pass, so
    its memory is independent of the number of microbatches.

    Args:
        first: (params, input) -> (x, shared, keys) of a microbatch: input of the first layer, and of all layers.
        last: (params, input, y) -> (value to differentiate, sums). weights: leaves (L, ...), split over stages.
        inputs: a pair: leaves (M, B, ...), and raw PRNG keys (M, words), replicated on every device.
        batch: mesh axes that split B.

    Returns:
        (sums, gradients of weights, gradients of params); gradients are float32.
    """
    p, m = _stages(), jax.tree.leaves(inputs)[0].shape[0]
    count, ring_size = m + 2 * (p - 1), 2 * p - 1
    down, up = [(i, i + 1) for i in range(p - 1)], [(i + 1, i) for i in range(p - 1)]
    forward = functools.partial(_stage_forward, first, run)
    backward = functools.partial(_stage_backward, forward, last)

    def stage(weights, params, inputs):
        s = jax.lax.axis_index(STAGE)

        def tick(carry, t):
            x, g, ring, total = carry
            i, j = t - s, t - (2 * (p - 1) - s)  # the microbatches that go forward, and back
            # Outside its schedule a stage writes only ring slots that are not read any more.
            ring = jax.lax.dynamic_update_index_in_dim(ring, x, jnp.mod(i, ring_size), 0)
            y = forward(weights, params, _at(inputs, jnp.clip(i, 0, m - 1)), x)
            inputs_j, x_j = _at(inputs, jnp.clip(j, 0, m - 1)), _at(ring, jnp.mod(j, ring_size))
            dx, new = backward(weights, params, inputs_j, x_j, g, (j >= 0) & (j < m))
            total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, new)
            return (jax.lax.ppermute(y, STAGE, down), jax.lax.ppermute(dx, STAGE, up), ring, total), None

        x, _, _ = jax.eval_shape(first, params, _at(inputs, 0))
        _, sums = jax.eval_shape(last, params, _at(inputs, 0), x)
        zeros = lambda tree, dtype=None: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype or leaf.dtype), tree)
        total = (zeros(sums), zeros(weights, jnp.float32), zeros(params, jnp.float32))
        carry = (zeros(x), zeros(x), jnp.zeros((ring_size, *x.shape), x.dtype), total)
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


def _stage_forward(first: Callable, run: Run, weights: Any, params: Any, inputs: Any, x: jax.Array) -> jax.Array:
    """This stage's layers for one microbatch; the first stage computes their input itself, the others use x."""
    s, count = jax.lax.axis_index(STAGE), jax.tree.leaves(weights)[0].shape[0]
    x_first, shared, keys = first(params, inputs)
    layer_keys = None if keys is None else jax.lax.dynamic_slice_in_dim(keys, s * count, count)
    return run(weights, jnp.where(s == 0, x_first, x), shared, layer_keys)


def _stage_backward(
    forward: Callable, last: Callable, weights: Any, params: Any, inputs: Any, x: jax.Array, g: jax.Array, valid: Any
) -> tuple[jax.Array, tuple[Any, Any, Any]]:
    """The backward pass of one microbatch, which recomputes the stage's forward pass from its input x.

    Args:
        g: gradient of the stage's output; the last stage computes it itself, from `last`.
        valid: whether there is such a microbatch. If not, the sums and the gradients of parameters are 0.

    Returns:
        (gradient of x, (sums, gradient of weights, gradient of params)).
    """
    is_last = jax.lax.axis_index(STAGE) == _stages() - 1

    def outputs(weights, params, x):
        y = forward(weights, params, inputs, x)
        value, sums = last(params, inputs, y)
        return (y, value), sums

    (y, value), pull, sums = jax.vjp(outputs, weights, params, x, has_aux=True)
    dy = jnp.where(valid & ~is_last, g, 0).astype(y.dtype)
    dw, dparams, dx = pull((dy, (valid & is_last).astype(value.dtype)))
    masked = lambda ok, tree: jax.tree.map(lambda leaf: jnp.where(ok, leaf, 0), tree)
    return dx, (masked(valid & is_last, sums), masked(valid, dw), masked(valid, dparams))


def in_float32(tree: Any) -> tuple[Any, Callable[[Any], Any]]:
    """(tree with low-precision float leaves cast to float32, function that casts back), for inputs of a `shard_map`.

    Gradients of these inputs are then summed in float32 over the iterations of a loop and over devices. XLA's CPU
    backend crashes on such a sum in bfloat16.
    """
    kinds = jax.tree.map(lambda leaf: leaf.dtype, tree)
    wider = lambda kind: jnp.promote_types(kind, jnp.float32) if jnp.issubdtype(kind, jnp.floating) else kind
    wide = jax.tree.map(lambda leaf: leaf.astype(wider(leaf.dtype)), tree)
    return wide, lambda leaves: jax.tree.map(lambda leaf, kind: leaf.astype(kind), leaves, kinds)


def _all_but_slices(policy: Callable, primitive: Any, *args: Any, **params: Any) -> Any:
    """`policy`, except that slices are never saved: each tick would save a copy of its virtual stage's weights."""
    return primitive not in _SLICES and policy(primitive, *args, **params)


_SLICES = (jax.lax.dynamic_slice_p, jax.lax.squeeze_p, jax.lax.convert_element_type_p)


def _stages() -> int:
    return jax.sharding.get_abstract_mesh().shape[STAGE]


def _by_stage(leaf: jax.Array, stages: int, virtual_stages: int) -> jax.Array:
    """(L, ...) -> (stages, virtual_stages, layers, ...): stage s holds the layer groups s, s + p, s + 2p, ..."""
    grouped = leaf.reshape(virtual_stages, stages, -1, *leaf.shape[1:])
    return jnp.swapaxes(grouped, 0, 1)


def _at(tree: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, 0, keepdims=False), tree)
