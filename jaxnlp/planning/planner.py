"""Plans a training step on a mesh: memory, communication and time, from the step compiled for those devices.

Nothing is executed. Memory and collectives are read from the compiled program. FLOPs are counted in the traced step
(`jaxpr_flops`), because a compiler counts the body of a loop once. Times are rooflines (Williams et al. 2009): the time
of each resource alone at its peak. The longest is a lower bound on the step time.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxnlp.figures.parallelism import amount
from jaxnlp.hardware import peak_flops
from jaxnlp.nn.jaxpr_flops import jaxpr_flops
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.remat import HOST
from jaxnlp.planning.activation_memory import saved_activation_bytes
from jaxnlp.planning.dry_run import device_bytes, gradient_bytes, optimizer_bytes, parameter_count
from jaxnlp.planning.hlo import collectives
from jaxnlp.planning.memory_formulas import zero_state_bytes
from jaxnlp.planning.memory_limits import device_memory_limit, host_memory_limit
from jaxnlp.planning.step_plan import StepPlan, exceeds_device_memory, exceeds_host_memory
from jaxnlp.planning.step_time import with_times
from jaxnlp.sharding.pipeline import bubble
from jaxnlp.sharding.rules import Sharding, as_tuple
from jaxnlp.training.experiment import Experiment, abstract_batch
from jaxnlp.training.step.flops import step_flops
from jaxnlp.training.step.program import Program, build

UNITS = {"G": 2**30, "M": 2**20, "K": 2**10}
PLAN_ERRORS = (
    ValueError,
    NotImplementedError,
    jax.errors.JaxRuntimeError,
)  # raised if a step cannot be laid out or compiled


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def plan_step(
    experiment: Experiment, devices: Sequence[Any], name: str = "", on_text: Callable[[str], Any] = lambda text: None
) -> StepPlan:
    """Compiles the training step of a resolved experiment for the devices, and returns its plan.

    Args:
        name: title of the plan; default: the mesh.
        on_text: called with the text of the compiled program.

    Raises:
        UserError: the experiment cannot be laid out over these devices (`build`).
    """
    e = dataclasses.replace(experiment, steps_per_call=1)
    program = build(e, devices)
    plan = estimate_step(program, name)
    if not plan.host_fits:
        return exceeds_host_memory(plan)
    start = time.monotonic()
    traced = program.step.trace(program.abstract, step_batch(program))
    plan = dataclasses.replace(plan, executed_flops=jaxpr_flops(traced.jaxpr))
    try:
        with program.context():
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return exceeds_device_memory(plan, required_bytes(str(error)))
    elapsed = time.monotonic() - start
    plan = dataclasses.replace(
        plan, compiled=compiled_memory(compiled.memory_analysis()), compile_seconds=round(elapsed, 1)
    )
    assert plan.compiled is not None
    if plan.device_memory_limit is not None and plan.compiled["peak"] > plan.device_memory_limit:
        return exceeds_device_memory(plan, plan.compiled["peak"])
    if not plan.host_fits:
        return exceeds_host_memory(plan)
    text = compiled.as_text()
    on_text(text)
    return with_times(plan, program, collectives(text))


def required_bytes(error: str) -> float | None:
    """Bytes that a rejected program needs, parsed from the compiler's error message; None if it has no size."""
    size = re.search(r"(\d+(?:\.\d+)?)([GMK]) of \d|memory required[^(]*\((\d+(?:\.\d+)?)([GMK])\)", error)
    if size is None:
        return None
    number, unit = size.group(1, 2) if size[1] else size.group(3, 4)
    return float(number) * UNITS[unit]


def step_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract batch that a training step takes."""
    e = program.experiment
    return abstract_batch(e, e.data.batch_size, program.batch_sharding)


def estimate_step(program: Program, name: str = "") -> StepPlan:
    """The part of a plan that needs no compilation."""
    e, device = program.experiment, program.mesh.devices.flat[0]
    leaves = jax.tree.leaves(program.abstract.all_params)
    tokens = e.data.batch_size * e.data.seq_len
    dtype = (e.model.body.policy or Policy()).operand_dtype
    schedule = program.pipeline_schedule
    peak, source = peak_flops(device, dtype)
    if e.peak_flops is not None:
        peak, source = e.peak_flops, f"{e.peak_flops:.4g} FLOP/s, as configured"
    on_device, on_host = optimizer_bytes(program)
    note = f"{amount(2 * on_host)} of optimizer state per step are copied to and from each host (not in the times)"
    saved, offloaded = saved_activation_bytes(program)
    host = {"optimizer state": on_host, "activations": offloaded}
    parts = {
        "parameters": sum(map(device_bytes, leaves)),
        "gradients": gradient_bytes(program),
        "optimizer state": on_device,
        "activations": saved,
    }
    return StepPlan(
        name=name or mesh_name(program.mesh.shape),
        device=device.device_kind,
        num_devices=program.mesh.size,
        mesh={axis: size for axis, size in program.mesh.shape.items() if size > 1},
        parameters=parameter_count(program),
        tokens=tokens,
        accum_steps=e.accum_steps,
        memory=parts,
        host_memory={part: size for part, size in host.items() if size},
        notes=(note,) if on_host else (),
        zero_formula=zero_formula(program),
        device_memory_limit=device_memory_limit(device),
        host_memory_limit=host_memory_limit(device),
        flops=step_flops(program),
        peak_flops=peak,
        peak_source=source,
        schedule=schedule and type(schedule).__name__,
        bubble=bubble(schedule, program.mesh.shape["stage"], e.accum_steps) if schedule else 0.0,
    )


def mesh_name(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"


def zero_formula(program: Program) -> dict[str, float]:
    """Bytes of parameters, gradients and optimizer state per device by ZeRO's formula (`zero_state_bytes`).

    The stage is derived from the sharding tables. Tensor and pipeline parallelism divide the parameter count first.
    Frozen parameters have no gradients and no optimizer state.
    """
    e, sizes = program.experiment, program.mesh.shape
    leaves, frozen = jax.tree.leaves(program.abstract.params), jax.tree.leaves(program.abstract.frozen)
    count = sum(x.size for x in leaves)
    weight = max(x.dtype.itemsize for x in leaves)
    slots = [x for x in jax.tree.leaves(program.abstract.opt_state) if x.sharding.memory_kind != HOST]
    state = sum(x.size * x.dtype.itemsize for x in slots) / count
    ways = {field: num_shards(rules, e.sharding, sizes) for field, rules in e.sharding.state_rules.items()}
    stage = 3 if ways["params"] > 1 else 2 if ways["gradients"] > 1 else 1 if ways["optimizer"] > 1 else 0
    batch = set(as_tuple(e.sharding.activations.get("batch")))
    model_shards = math.prod(
        sizes[axis] for axis in {a for axes in e.sharding.params.values() for a in as_tuple(axes)} - batch
    )
    gradient = 4 if e.accum_steps > 1 else weight
    bytes_each = {"weight": weight, "gradient": gradient, "optimizer": round(state)}
    size = zero_state_bytes(count / model_shards, max(ways.values()), stage, **bytes_each)
    size += sum(x.size * x.dtype.itemsize for x in frozen) / model_shards / (ways["params"] if stage == 3 else 1)
    return {"stage": stage, "bytes": size, **{f"{name} bytes": size for name, size in bytes_each.items()}}


def num_shards(rules: Mapping[str, Any], sharding: Sharding, sizes: Mapping[str, int]) -> int:
    """Number of shards into which a table splits the model over the mesh axes that also shard the batch."""
    batch_axes = set(as_tuple(sharding.activations.get("batch")))
    split_axes = {axis for axes in rules.values() for axis in as_tuple(axes) if axis in batch_axes}
    return math.prod(sizes[axis] for axis in split_axes)


def compiled_memory(memory: Any) -> dict[str, int]:
    """The compiler's memory analysis in bytes. Outputs that reuse an argument's buffer (donated state) do not count."""
    outputs = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "other outputs": outputs,
        "host": memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
    }
    return {**sizes, "peak": sum(sizes[name] for name in ("arguments", "temporaries", "other outputs"))}
