"""Plans a training step on a mesh: memory, communication and time, from the step compiled for those devices.

Nothing is executed. Memory and collectives are read from the compiled program. FLOPs are counted in the traced step
(`jaxpr_flops`), because a compiler counts the body of a loop once. Times are rooflines (Williams et al. 2009): the time
of each resource alone at its peak. The longest is a lower bound on the step time.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxnlp.figures.parallelism import amount
from jaxnlp.hardware import chip_of, peak_flops
from jaxnlp.nn.jaxpr_flops import jaxpr_flops
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.remat import HOST
from jaxnlp.planning.activation_memory import saved_activation_bytes
from jaxnlp.planning.dry_run import device_bytes, gradient_bytes, optimizer_bytes, parameter_count
from jaxnlp.planning.hlo import Collective, collectives
from jaxnlp.planning.memory_formulas import zero_state_bytes
from jaxnlp.planning.network import Traffic, link_group, traffic_of
from jaxnlp.sharding.pipeline import Circular, GPipe, OneFOneB, bubble, named_schedule, ticks
from jaxnlp.sharding.rules import Sharding, as_tuple, shardings
from jaxnlp.training.experiment import Experiment, abstract_batch
from jaxnlp.training.step.flops import step_flops
from jaxnlp.training.step.program import Program, build

UNITS = {"G": 2**30, "M": 2**20, "K": 2**10}
COMPUTE, MEMORY = "compute", "HBM"
PLAN_ERRORS = (ValueError, NotImplementedError, jax.errors.JaxRuntimeError)  # of what cannot be laid out or compiled


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Plan of a training step on a mesh. Bytes and seconds are per device.

    Attributes:
        tokens: per step, over all devices.
        memory: our estimate of device memory: parameters, optimizer state, gradients and activations.
        host_memory: the device's share of host memory, by category.
        compiled: memory analysis of the compiler: arguments, temporaries, outputs that reuse no argument's buffer, host
            memory, and the device's `peak`. None if the step was not compiled or does not compile.
        zero_formula: bytes of parameters, gradients and optimizer state by ZeRO's formula, its stage, and the bytes per
            parameter that it assumes.
        device_memory_limit: bytes that a program can use. host_memory_limit: the device's share of host memory. None if
            unknown.
        problem: one line that explains why the step does not fit; None if it fits.
        required_bytes: bytes that a step that does not fit would need, by the compiler or our estimate.
        remedies: config changes that would help (`remedies.py`).
        flops: model FLOPs of the step, over all devices.
        executed_flops: FLOPs of the traced step over all devices, including rematerialisation and the idle ticks of a
            pipeline; 0 if it was not traced.
        peak_flops: FLOP/s per device. peak_source: a description of where this figure comes from.
        bubble: fraction of a pipeline's time in which a stage does no useful work (`sharding/pipeline.py`).
        traffic: collectives by kind, axes and network. hbm_bytes: least bytes moved to and from device memory.
        seconds: least time of each resource: "compute", "HBM", and one entry per network and its axes.
        notes: further remarks, one line each.
        compile_seconds: time spent tracing and compiling.
    """

    name: str
    device: str
    num_devices: int
    mesh: dict[str, int]
    parameters: int
    tokens: int
    accum_steps: int
    memory: dict[str, int]
    host_memory: dict[str, int]
    zero_formula: dict[str, float]
    device_memory_limit: float | None
    flops: float
    peak_flops: float | None
    peak_source: str
    host_memory_limit: float | None = None
    schedule: str | None = None
    bubble: float = 0.0
    executed_flops: float = 0.0
    compiled: dict[str, int] | None = None
    problem: str | None = None
    required_bytes: float = 0.0
    remedies: tuple[str, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    hbm_bytes: float = 0.0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    compile_seconds: float = 0.0

    @property
    def host_bytes(self) -> int:
        """The device's share of host memory in bytes: the larger of our estimate and the compiler's figure."""
        return max(sum(self.host_memory.values()), (self.compiled or {}).get("host", 0))

    @property
    def host_fits(self) -> bool:
        return self.host_memory_limit is None or self.host_bytes <= self.host_memory_limit

    @property
    def fits(self) -> bool:
        return self.problem is None

    @property
    def bottleneck(self) -> str | None:
        """The resource with the longest time; None if the step does not fit or no time is known."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.fits and self.seconds else None

    @property
    def step_seconds(self) -> float | None:
        return None if self.bottleneck is None else self.seconds[self.bottleneck]

    @property
    def mfu_ceiling(self) -> float | None:
        """Upper bound on the model FLOPs utilisation: the time of `flops` at the peak, divided by `step_seconds`."""
        if self.step_seconds is None or self.peak_flops is None:
            return None
        return self.flops / self.num_devices / self.peak_flops / self.step_seconds

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, with the derived properties."""
        derived = {
            "fits": self.fits,
            "bottleneck": self.bottleneck,
            "step_seconds": self.step_seconds,
            "mfu_ceiling": self.mfu_ceiling,
        }
        return {**dataclasses.asdict(self), **derived}


def plan_step(
    experiment: Experiment, devices: Sequence[Any], name: str = "", read: Callable[[str], Any] = lambda text: None
) -> StepPlan:
    """Compiles the training step of a resolved experiment for the devices, and returns its plan.

    Args:
        name: title of the plan; default: the mesh.
        read: called with the text of the compiled program.

    Raises:
        UserError: the experiment cannot be laid out over these devices (`build`).
    """
    e = dataclasses.replace(experiment, steps_per_call=1)
    program = build(e, devices)
    plan = estimate_step(program, name)
    if not plan.host_fits:
        return exceeds_host_memory(plan)
    begun = time.monotonic()
    traced = program.step.trace(program.abstract, step_batch(program))
    plan = dataclasses.replace(plan, executed_flops=jaxpr_flops(traced.jaxpr))
    try:
        with program.context():
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return exceeds_device_memory(plan, required_bytes(str(error)))
    spent = time.monotonic() - begun
    plan = dataclasses.replace(
        plan, compiled=compiled_memory(compiled.memory_analysis()), compile_seconds=round(spent, 1)
    )
    assert plan.compiled is not None
    if plan.device_memory_limit is not None and plan.compiled["peak"] > plan.device_memory_limit:
        return exceeds_device_memory(plan, plan.compiled["peak"])
    if not plan.host_fits:
        return exceeds_host_memory(plan)
    text = compiled.as_text()
    read(text)
    return with_times(plan, program, collectives(text))


def required_bytes(error: str) -> float | None:
    """Bytes that a rejected program needs, parsed from the compiler's error message; None if it has no size."""
    size = re.search(r"(\d+(?:\.\d+)?)([GMK]) of \d|memory required[^(]*\((\d+(?:\.\d+)?)([GMK])\)", error)
    if size is None:
        return None
    number, unit = size.group(1, 2) if size[1] else size.group(3, 4)
    return float(number) * UNITS[unit]


def exceeds_device_memory(plan: StepPlan, size: float | None) -> StepPlan:
    """The plan with `problem` set: the step needs `size` bytes of device memory (None: unknown) and does not fit."""
    account = float(sum(plan.memory.values()))
    largest = max(plan.memory, key=plan.memory.__getitem__)
    beyond = "" if plan.device_memory_limit is None else f" and {amount(plan.device_memory_limit)} are there"
    problem = (
        f"does not fit: the step needs {amount(size or account)} on each {plan.device}{beyond}; "
        f"largest are the {largest}, {amount(plan.memory[largest])}"
    )
    return dataclasses.replace(plan, problem=problem, required_bytes=max(size or 0.0, account))


def exceeds_host_memory(plan: StepPlan) -> StepPlan:
    """The plan with `problem` set: the step needs more host memory per device than is available."""
    assert plan.host_memory_limit is not None
    largest = max(plan.host_memory, key=plan.host_memory.__getitem__, default="")
    detail = f"; largest are the {largest}, {amount(plan.host_memory[largest])}" if largest else ""
    problem = (
        f"does not fit: the step needs {amount(plan.host_bytes)} of host memory for each {plan.device} "
        f"and {amount(plan.host_memory_limit)} are there{detail}"
    )
    return dataclasses.replace(plan, problem=problem)


def step_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract batch that a training step takes."""
    e = program.experiment
    return abstract_batch(e, e.data.batch_size, program.batch_sharding)


def estimate_step(program: Program, name: str = "") -> StepPlan:
    """The part of a plan that needs no compilation."""
    e, device = program.experiment, program.mesh.devices.flat[0]
    leaves = jax.tree.leaves(program.abstract.model)
    tokens = e.data.batch_size * e.data.seq_len
    dtype = (e.model.body.policy or Policy()).operand_dtype
    schedule = pipeline_schedule(program)
    peak, source = peak_flops(device, dtype)
    if e.peak_flops is not None:
        peak, source = e.peak_flops, f"{e.peak_flops:.4g} FLOP/s, as configured"
    here, there = optimizer_bytes(program)
    moved = f"{amount(2 * there)} of optimizer state a step go between each device and its host, in a time not told"
    kept, offloaded = saved_activation_bytes(program)
    host = {"optimizer state": there, "activations": offloaded}
    parts = {
        "parameters": sum(map(device_bytes, leaves)),
        "gradients": gradient_bytes(program),
        "optimizer state": here,
        "activations": kept,
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
        notes=(moved,) if there else (),
        zero_formula=zero_formula(program),
        device_memory_limit=device_memory_limit(device),
        host_memory_limit=host_memory_limit(device),
        flops=step_flops(program),
        peak_flops=peak,
        peak_source=source,
        schedule=schedule and type(schedule).__name__,
        bubble=bubble(schedule, program.mesh.shape["stage"], e.accum_steps) if schedule else 0.0,
    )


def pipeline_schedule(program: Program) -> Any:
    """The pipeline schedule of a program; None without pipeline parallelism."""
    pipelined = program.mesh.shape["stage"] > 1
    return named_schedule(program.experiment.sharding.pipeline) if pipelined else None


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
    own = math.prod(sizes[axis] for axis in {a for axes in e.sharding.params.values() for a in as_tuple(axes)} - batch)
    gradient = 4 if e.accum_steps > 1 else weight
    per = {"weight": weight, "gradient": gradient, "optimizer": round(state)}
    size = zero_state_bytes(count / own, max(ways.values()), stage, **per)
    size += sum(x.size * x.dtype.itemsize for x in frozen) / own / (ways["params"] if stage == 3 else 1)
    return {"stage": stage, "bytes": size, **{f"{name} bytes": size for name, size in per.items()}}


def num_shards(rules: Mapping[str, Any], sharding: Sharding, sizes: Mapping[str, int]) -> int:
    """Number of shards into which a table splits the model over the mesh axes that also shard the batch."""
    shared = set(as_tuple(sharding.activations.get("batch")))
    used = {axis for axes in rules.values() for axis in as_tuple(axes) if axis in shared}
    return math.prod(sizes[axis] for axis in used)


def attached_device(device: Any) -> Any | None:
    """A local device of the same kind; None for the devices of a topology that is not attached to this process."""
    return next((d for d in jax.local_devices() if d.device_kind == device.device_kind), None)


def device_memory_limit(device: Any) -> float | None:
    """Bytes of device memory that a program can use; None if unknown.

    An attached device reports its limit (JAX takes three quarters of a GPU's memory). Otherwise it is the limit of
    the chip (`hardware.py`). For a CPU it is its share of the RAM.
    """
    if device.platform == "cpu":
        return host_ram() / jax.local_device_count()
    here, chip = attached_device(device), chip_of(device)
    own = None if here is None else (here.memory_stats() or {}).get("bytes_limit")
    return own if own is not None else None if chip is None else chip.memory_limit


def host_memory_limit(device: Any) -> float | None:
    """A device's share of host memory in bytes: of this machine if such a device is attached, else of the chip's host.

    None if unknown.
    """
    if attached_device(device) is None:
        chip = chip_of(device)
        return None if chip is None else chip.host_memory_limit
    if device.platform != "gpu":
        return host_ram() / jax.local_device_count()
    return host_ram() / sum(
        link_group(d) == link_group(device) for d in jax.devices()
    )  # a host's GPUs, of however many processes


def host_ram() -> int:
    """Bytes of RAM of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def compiled_memory(memory: Any) -> dict[str, int]:
    """The compiler's memory analysis in bytes. Outputs that reuse an argument's buffer (donated state) do not count."""
    kept = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "other outputs": kept,
        "host": memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
    }
    return {**sizes, "peak": sum(sizes[name] for name in ("arguments", "temporaries", "other outputs"))}


# Time


def with_times(plan: StepPlan, program: Program, ops: Sequence[Collective]) -> StepPlan:
    """The plan with its network traffic and rooflines."""
    chip = chip_of(program.mesh.devices.flat[0])
    traffic, moved = traffic_of(ops, program.mesh, chip), hbm_traffic(plan, program)
    seconds: dict[str, float] = {}
    if plan.peak_flops:
        seconds[COMPUTE] = plan.executed_flops / plan.num_devices / plan.peak_flops
    if chip is not None and chip.hbm_bandwidth is not None:
        seconds[MEMORY] = moved / chip.hbm_bandwidth
    for row in traffic:
        if row.seconds is not None:
            name = f"{row.network} {'+'.join(row.axes)}"
            seconds[name] = seconds.get(name, 0.0) + row.seconds
    warnings = traffic_notes(program, traffic, plan.memory["gradients"])
    return dataclasses.replace(plan, traffic=traffic, hbm_bytes=moved, seconds=seconds, notes=plan.notes + warnings)


def traffic_notes(program: Program, traffic: Sequence[Traffic], share: int) -> tuple[str, ...]:
    """A note if the compiler turned the reduce-scatters of sharded gradients into all-reduces.

    Args:
        share: bytes of a device's share of the gradients; smaller all-reduces do not reduce the gradients.
    """
    sharding, device = program.experiment.sharding, program.mesh.devices.flat[0]
    rules = sharding.params if sharding.gradients is None else sharding.gradients
    batch = set(as_tuple(sharding.activations.get("batch")))
    over = {axis for axes in rules.values() for axis in as_tuple(axes) if program.mesh.shape[axis] > 1} & batch
    sent = {
        kind: sum(row.bytes for row in traffic if row.kind == kind and over <= set(row.axes))
        for kind in ("all-reduce", "reduce-scatter")
    }
    if not over or sent["all-reduce"] <= max(sent["reduce-scatter"], share):
        return ()
    axes, each = "+".join(sorted(over)), amount(sent["all-reduce"])
    line = f"gradients are split over {axes}, yet {each} of all-reduces go along it, twice what reduce-scatters send"
    if device.platform == "cpu":
        return (f"{line}: the compiler for CPUs has none",)
    why = "the TPU's compiler makes them so over several sides of a torus"
    return (f"{line}: {why}; counted as compiled. With {axes} along one side, and data along others, they stay",)


def hbm_traffic(plan: StepPlan, program: Program) -> float:
    """Lower bound on the bytes that a step moves between a device and its memory.

    Each microbatch (each tick of a pipeline):

    - reads the weights, gathered and in the matmul dtype, in the forward pass, its rematerialisation and the backward
      pass;
    - writes and reads the saved activations;
    - adds to the gradients.

    The update reads and writes parameters and optimizer state, and reads the gradients. State in host memory is written
    and read once more on its way to the device, and on its way back.
    """
    e, params, schedule = program.experiment, program.abstract.model, pipeline_schedule(program)
    policy = e.model.body.policy or Policy()
    layout = shardings(params, program.all_axes, e.sharding.used, program.mesh)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(layout), strict=True)
    width = lambda x: min(x.dtype.itemsize, policy.operand_dtype.itemsize)
    weights = sum(math.prod(s.shard_shape(x.shape)) * width(x) for x, s in pairs)
    turns = (
        ticks(schedule, program.mesh.shape["stage"], e.accum_steps) / schedule.virtual_stages
        if schedule
        else e.accum_steps
    )
    again = plan.executed_flops * (1 - plan.bubble) / plan.flops - 1
    passes = 2 + min(max(0.0, 3 * again), 1.0 + isinstance(schedule, OneFOneB))
    # GPipe and Circular save the activations of all microbatches; otherwise the estimate covers one microbatch.
    kept = 1 if isinstance(schedule, (GPipe, Circular)) else e.accum_steps
    moved = turns * (passes * weights + 2 * plan.memory["gradients"]) + kept * 2 * plan.memory["activations"]
    state = 2 * plan.memory["optimizer state"] + 4 * plan.host_memory.get("optimizer state", 0)
    return moved + 2 * plan.memory["parameters"] + state
