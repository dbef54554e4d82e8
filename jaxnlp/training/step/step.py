"""The train step: gradients summed over microbatches, divided once, one optimizer update.

Shape legend: A microbatches, B batch, T length.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnlp.objectives.objective import Objective, means
from jaxnlp.training.step.state import TrainState
from jaxnlp.training.step.zero_update import Layouts
from jaxnlp.trees import merge, select

GROWTH_STEPS = 2000  # steps without overflow after which the float16 loss scale doubles
MAX_SCALE = 2.0**24

Step = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]


def make_step(
    apply: Callable,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    *,
    accum_steps: int = 1,
    skip_nonfinite: bool = False,
    gradients: Any = None,
    sums: Callable | None = None,
    layouts: Layouts | None = None,
    update: Callable | None = None,
) -> Step:
    """A pure function (state, batch) -> (state, metrics), to be jitted with the state donated.

    Args:
        apply: (params, *args, key=) -> outputs. objective: see `objectives/objective.py`.
        schedule: learning rate of a step, for the metrics.
        accum_steps: number of microbatches, which run one after the other.
        skip_nonfinite: skip an update whose loss or gradient is not finite. Under float16 an overflowing gradient is
            always skipped, and the loss scale halved.
        gradients: the sharding of each gradient; None leaves it to the compiler.
        sums: replaces `sum_gradients`; its parameters include the frozen ones. None: `sum_gradients`.
        layouts: the parameters' shardings during the update and at rest, if they differ; else None.
        update: replaces the optimizer's update, as `offload.Offload` does.

    Metrics (scalars): `loss` per token, the objective's metrics, `grad_norm` before clipping, `learning_rate`, `weight`
    (tokens with a target), `finite` (1 or 0), `skipped` (so far) and, under float16, `loss_scale`.
    """
    update = update or functools.partial(_update, optimizer, layouts)

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        scale = None if state.loss_scale is None else state.loss_scale["scale"]
        batch = objective.prepare(batch)
        if sums is None:
            forward = apply if state.frozen is None else functools.partial(_on_frozen, apply, state.frozen)
            totals, grads = sum_gradients(forward, objective, state.params, batch, key, accum_steps, scale, gradients)
        else:
            layout = gradients if state.frozen is None else None
            totals, grads = sums(apply, objective, state.all_params, batch, key, accum_steps, scale, layout)
        total, weight, extra = totals
        weight = jnp.maximum(weight, 1e-9)  # a batch of nothing but padding has loss 0
        divisor = weight if scale is None else weight * scale
        grads = select(grads, state.params)
        grads = jax.tree.map(lambda g, p: (g / divisor).astype(p.dtype), grads, state.params)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(total) & jnp.isfinite(norm)
        guarded = skip_nonfinite or scale is not None
        params, opt_state = update(grads, state, finite if guarded else None)
        new = _advance(state, params, opt_state, finite, guarded)
        metrics = {**means(extra, weight), "loss": total / weight, "weight": weight, "grad_norm": norm}
        metrics["finite"] = finite if scale is None else jnp.isfinite(total)
        return new, _scalars({**metrics, **_progress(state, new, schedule)})

    return step


def _update(optimizer, layouts, grads, state, finite):
    """The new parameters and optimizer state; the old ones where `finite` is false (None: always the new ones)."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = (layouts or optax).apply_updates(state.params, updates)
    if finite is not None:
        params, opt_state = _select(finite, (params, opt_state), (state.params, state.opt_state))
    return params if layouts is None else layouts.gather(params, state.params), opt_state


def _advance(state: TrainState, params: Any, opt_state: Any, finite: jax.Array, guarded: bool) -> TrainState:
    """The state after an update. guarded: whether an update that is not finite was skipped."""
    skipped = state.skipped + (1 - finite) if guarded else state.skipped
    scaling = None if state.loss_scale is None else next_scaling(state.loss_scale, finite)
    return TrainState(state.step + 1, params, opt_state, state.key, skipped, scaling, state.frozen)


def _progress(state: TrainState, new: TrainState, schedule: Callable[[Any], Any]) -> dict[str, Any]:
    """Metrics of the step from state `state` to `new`: learning rate, skipped updates and loss scale."""
    metrics = {"learning_rate": schedule(state.step - state.skipped), "skipped": new.skipped}
    return metrics if state.loss_scale is None else {**metrics, "loss_scale": state.loss_scale["scale"]}


def _scalars(metrics: dict[str, Any]) -> dict[str, jax.Array]:
    """The scalar metrics, as float32."""
    return {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items() if not jnp.ndim(x)}


def _on_frozen(apply, frozen, params, *args, **kwargs):
    return apply(merge(frozen, params), *args, **kwargs)


def sum_gradients(apply, objective, params, batch, key, accum_steps, scale=None, layout=None):
    """Sums over the batch: ((loss, weight, metrics), gradient of the loss, times `scale` if given).

    Microbatch a holds the rows a, a + A, a + 2A, ..., so that each device keeps its own rows when the batch is split
    over devices. `layout`: the sharding of each gradient, and of its sum over microbatches.
    """
    place = (lambda grads: grads) if layout is None else (lambda g: jax.lax.with_sharding_constraint(g, layout))

    def loss(params, rows, key):
        total, weight, extra = objective.loss(apply, params, rows, key)
        return total if scale is None else total * scale, (total, weight, extra)

    gradient = jax.grad(loss, has_aux=True)
    if accum_steps == 1:
        grads, sums = gradient(params, batch, key)
        return sums, place(grads)
    micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accum_steps, *x.shape[1:]), 1, 0), batch)

    def add_microbatch(carry, inputs):
        rows, i = inputs
        grads, sums = gradient(params, rows, jax.random.fold_in(key, i))
        grads = place(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        return jax.tree.map(jnp.add, carry, (sums, grads)), None

    first_rows = jax.tree.map(lambda x: x[0], micro)
    _, sums = jax.eval_shape(gradient, params, first_rows, key)
    grads = place(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
    zeros = (jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), sums), grads)
    (sums, grads), _ = jax.lax.scan(add_microbatch, zeros, (micro, jnp.arange(accum_steps)))
    return sums, grads


def next_scaling(scaling: dict[str, jax.Array], finite: jax.Array) -> dict[str, jax.Array]:
    """Dynamic loss scaling: the scale is halved on overflow, and doubled after 2000 steps without one.

    Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
    """
    good = jnp.where(finite, scaling["good"] + 1, 0)
    grow = good >= GROWTH_STEPS
    scale = jnp.where(finite, jnp.where(grow, scaling["scale"] * 2, scaling["scale"]), scaling["scale"] / 2)
    return {"scale": jnp.clip(scale, 1.0, MAX_SCALE), "good": jnp.where(grow, 0, good)}


def many_steps(step: Step) -> Step:
    """`step` over a stack of batches in one device call. Metrics are stacked too; traces show the name of `step`."""

    def steps(state: TrainState, batches: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        return jax.lax.scan(step, state, batches)

    steps.__name__ = step.__name__
    return steps


def _select(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
