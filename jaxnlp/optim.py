"""Optimizers and learning-rate schedules: short names over optax."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnlp.config import field_values
from jaxnlp.errors import FieldError

OPTIMIZERS = ("adamw", "lion", "adafactor", "sgd", "muon")
LAYERWISE = ("adamw", "lion", "sgd", "muon")
"""Optimizers that update stacked layers as they would each layer alone. Adafactor scales by the full array instead."""
SCHEDULES = ("cosine", "linear", "wsd", "inverse_sqrt", "constant")

Schedule = Callable[[Any], Any]


@dataclasses.dataclass(kw_only=True)
class OptimConfig:
    """Optimizer, schedule, weight decay and clipping.

    name: adamw (Loshchilov and Hutter 2019), lion (Chen et al. 2023), adafactor (Shazeer and
        Stern 2018), sgd with momentum, or muon (Jordan 2024) for the hidden matrices with
        AdamW for the rest, scaled so that AdamW's learning rates can be kept (arXiv:2502.16982).
    learning_rate: the schedule's peak.
    schedule: after `warmup_steps` of linear warm-up: cosine or linear decay to the end of the
        run; wsd, constant until the last `decay_fraction` of the run and then linear; inverse_sqrt,
        peak * sqrt(warmup / step), the Transformer's schedule with `noam_peak`; or constant.
    final_fraction: the final learning rate over the peak, for cosine, linear and wsd.
    total_steps: length of the schedule; None: the run's `num_steps`.
    weight_decay: decoupled, multiplied by the learning rate as PyTorch does.
    no_decay: regular expressions; parameters whose path matches one are not decayed.
    b1, b2, epsilon: of Adam and similar optimizers; b2 None is 0.99 for lion and 0.95 for others. b1 is the
        momentum of sgd and muon. Adafactor has no momentum.
    clip_norm: largest global norm of the gradient; None does not clip.
    master_dtype: "float32" keeps a float32 copy of the parameters in the optimizer's state and updates that copy, for
        models with param_dtype "bfloat16", whose parameters lose small updates. None updates the parameters.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 0
    decay_fraction: float = 0.2
    final_fraction: float = 0.1
    total_steps: int | None = None
    weight_decay: float = 0.1
    no_decay: tuple[str, ...] = (r"bias$", r"scale$")
    b1: float = 0.9
    b2: float | None = None
    epsilon: float = 1e-8
    clip_norm: float | None = 1.0
    master_dtype: str | None = None

    def check(self) -> None:
        """Raises FieldError for an unknown name or a number out of range."""
        if self.name not in OPTIMIZERS:
            raise FieldError("name", self.name, f"expected one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise FieldError("schedule", self.schedule, f"expected one of {', '.join(SCHEDULES)}")
        for field, value in field_values(self, "learning_rate", "epsilon").items():
            if not value > 0:
                raise FieldError(field, value, "expected a positive number")
        for field, value in field_values(self, "warmup_steps", "weight_decay").items():
            if value < 0:
                raise FieldError(field, value, "expected 0 or more")
        for field, value in field_values(self, "decay_fraction", "final_fraction").items():
            if not 0 <= value <= 1:
                raise FieldError(field, value, "expected a fraction in [0, 1]")
        for field, value in field_values(self, "b1", "b2").items():
            if value is not None and not 0 <= value < 1:
                raise FieldError(field, value, "expected a number in [0, 1)")
        if self.total_steps is not None and self.total_steps < 1:
            raise FieldError("total_steps", self.total_steps, "expected 1 or more, or None for the run's num_steps")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise FieldError("clip_norm", self.clip_norm, "expected a positive number, or None for no clipping")
        if self.master_dtype not in (None, "float32"):
            raise FieldError("master_dtype", self.master_dtype, "expected 'float32', or None for no copy")
        if self.schedule == "inverse_sqrt" and not self.warmup_steps:
            raise FieldError("warmup_steps", 0, "schedule 'inverse_sqrt' needs a warm-up; expected 1 or more")
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except re.error as e:
                raise FieldError("no_decay", pattern, f"not a regular expression ({e})") from None


def noam_peak(embed_dim: int, warmup_steps: int, factor: float = 1.0) -> float:
    """The peak learning rate that makes schedule "inverse_sqrt" that of the 2017 Transformer:
    embed_dim^-0.5 * min(step^-0.5, step * warmup_steps^-1.5) (Vaswani et al. 2017, equation 3)."""
    return factor * (embed_dim * warmup_steps) ** -0.5


def make_schedule(config: OptimConfig, steps: int) -> Schedule:
    """A function from the step (from 0) to the learning rate, for a run of `steps` steps.

    Raises:
        FieldError: a warm-up that is not shorter than the schedule.
    """
    peak, warmup, total = config.learning_rate, config.warmup_steps, config.total_steps or steps
    if warmup and warmup >= total and config.schedule != "constant":
        raise FieldError(
            "optim.warmup_steps", warmup, f"expected fewer than the schedule's {total} steps; reduce the warm-up"
        )
    decay_steps, final = total - warmup, peak * config.final_fraction
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, final, decay_steps)
    elif config.schedule == "wsd":
        decay = max(1, round(total * config.decay_fraction))
        after = optax.join_schedules(
            [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)], [max(0, decay_steps - decay)]
        )
    elif config.schedule == "inverse_sqrt":
        after = lambda step: peak * (warmup / (step + warmup + 1)) ** 0.5  # step 0 of a run is step 1 of the paper
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    # Warm-up starts at peak / warmup rather than 0, so that step 0 already updates.
    ramp = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
    config: OptimConfig, steps: int, axes: Any, rates: Any = None
) -> tuple[optax.GradientTransformationExtraArgs, Schedule]:
    """The optimizer and its schedule.

    Its `update` also accepts a subset of the parameters, with `optax.MaskedNode()` in place of the others and the norm
    of all gradients as `gradient_norm`.

    Args:
        config: name and hyperparameters of the optimizer, and its schedule.
        steps: length of the run.
        axes: tree like the parameters, of tuples of logical axis names; muon reads from it
            which axes of a matrix are inputs.
        rates: tree like the parameters, of factors on their learning rates; None: one learning rate for all.
    """
    schedule = make_schedule(config, steps)
    decay = {"weight_decay": config.weight_decay, "mask": lambda params: decay_mask(params, config.no_decay)}
    b2 = config.b2 if config.b2 is not None else (0.99 if config.name == "lion" else 0.95)
    if config.name == "adamw":
        optimizer = optax.adamw(schedule, b1=config.b1, b2=b2, eps=config.epsilon, **decay)
    elif config.name == "lion":
        optimizer = optax.lion(schedule, b1=config.b1, b2=b2, **decay)
    elif config.name == "adafactor":
        optimizer = optax.chain(
            optax.adafactor(multiply_by_parameter_scale=True),
            optax.scale(-1.0),
            optax.add_decayed_weights(config.weight_decay, decay["mask"]),
            optax.scale_by_learning_rate(schedule),
        )
    elif config.name == "sgd":
        optimizer = optax.chain(
            optax.trace(decay=config.b1),
            optax.add_decayed_weights(config.weight_decay, decay["mask"]),
            optax.scale_by_learning_rate(schedule),
        )
    else:
        matrices = matrix_axes(axes)
        muon = optax.contrib.muon(
            schedule,
            beta=config.b1,
            weight_decay=config.weight_decay,
            weight_decay_mask=decay["mask"],
            eps=config.epsilon,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=matrices,
        )
        # optax's muon has its own AdamW for other parameters, which takes no decay mask.
        others = optax.adamw(schedule, b1=config.b1, b2=b2, eps=config.epsilon, **decay)
        is_leaf = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
        labels = jax.tree.map(lambda x: "rest" if x is None else "muon", matrices, is_leaf=is_leaf)
        optimizer = optax.partition({"muon": muon, "rest": others}, labels)
    # The state is the same with and without clipping, so that a run can resume with clip_norm changed.
    clip = optax.identity() if config.clip_norm is None else clip_by_global_norm(config.clip_norm)
    scaled = () if rates is None else (scale_by(rates),)
    optimizer = optax.chain(clip, optimizer, *scaled)
    return (optimizer if config.master_dtype is None else with_master(optimizer)), schedule


def clip_by_global_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """As `optax.clip_by_global_norm`; `update` also accepts a subset of the gradients and the norm of all."""

    def update(updates, state, params=None, *, gradient_norm=None, **_):
        norm = optax.tree.norm(updates) if gradient_norm is None else gradient_norm
        clip = lambda g: jnp.where(norm < limit, g, (g / norm.astype(g.dtype)) * limit)
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by(rates: Any) -> optax.GradientTransformation:
    """Multiplies each update by its factor in `rates`; `update` also accepts a subset of the parameters."""
    masked = lambda x: isinstance(x, optax.MaskedNode)

    def update(updates, state, params=None):
        return jax.tree.map(lambda u, rate: u if masked(u) else u * rate, updates, rates, is_leaf=masked), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def with_master(optimizer: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """`optimizer` over a float32 copy of the parameters. The parameters are that copy rounded to their own dtype.

    Micikevicius et al. 2018, arXiv:1710.03740, section 3.1. With 16-bit parameters and Adam the state has 12 bytes per
    parameter: the copy and two moments. State: `master`, like the parameters, and `inner`, the optimizer's own state.
    """
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params):
        master = wide(params)
        return {"master": master, "inner": optimizer.init(master)}

    def update(updates, state, params=None, **extra):
        assert params is not None
        changes, inner = optimizer.update(wide(updates), state["inner"], state["master"], **extra)
        master = optax.apply_updates(state["master"], changes)
        # Updates that make the parameters equal the rounded copy, whatever their values were.
        moves = jax.tree.map(lambda m, p: m.astype(p.dtype).astype(jnp.float32) - p.astype(jnp.float32), master, params)
        return moves, {"master": master, "inner": inner}

    return optax.GradientTransformationExtraArgs(init, update)


def decay_mask(params: Any, no_decay: tuple[str, ...]) -> Any:
    """True for each parameter whose path matches none of the patterns."""

    def decays(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return not any(re.search(pattern, name) for pattern in no_decay)

    return jax.tree_util.tree_map_with_path(decays, params)


def matrix_axes(axes: Any) -> Any:
    """Muon's input and output axes of each hidden matrix; None for the parameters it leaves to AdamW.

    A hidden matrix has no "vocab" or "length" axis and exactly one "embed" axis, which is its input if it comes first
    and its output if it comes last. A "layers" axis is a batch of matrices.
    """

    def axes_of(names):
        places = [i for i, name in enumerate(names) if name not in ("layers", None)]
        sides = [names[i] for i in places]
        if len(places) < 2 or sides.count("embed") != 1 or {"vocab", "length"} & set(sides):
            return None
        num_inputs = 1 if sides[0] == "embed" else len(places) - 1
        return optax.contrib.MuonDimensionNumbers(tuple(places[:num_inputs]), tuple(places[num_inputs:]))

    return jax.tree.map(axes_of, axes, is_leaf=lambda x: isinstance(x, tuple))
