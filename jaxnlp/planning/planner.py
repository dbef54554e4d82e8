"""Plans a training step on a mesh: memory, communication and time, from the step compiled for those devices.

Nothing runs. Memory and collectives are read from the compiled program; FLOPs are counted in the traced step
(`jaxpr_flops`), since a compiler counts the body of a loop once. Times are rooflines (Williams et al. 2009): the time
of each resource alone at its peak; the longest is a lower bound on the time of a step.
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
    """A step on a mesh, bytes and seconds of one device.

    memory: what holds memory, by our account: parameters, optimizer state and, while a step is under way, gradients
        and activations. host: what holds the host's memory, a device's share of it.
    compiled: by the compiler's: arguments, temporaries, outputs that take no argument's place, host memory, and `peak`
        of the device's. None where it does not compile.
    theory: bytes of parameters, gradients and optimizer state by ZeRO's formula, and the bytes a parameter it counts.
    limit: bytes that a program can have. host_limit: of the host's memory, a device's share. None: not known.
    problem: why it does not fit, in a line; None where it does.
    needed: bytes that it would take, by the compiler's account. remedies: changes that would help (`remedies.py`).
    flops: operations of the whole step, of the model. executed: of the step as traced, on all devices: what remat
        computes again and what a pipeline computes in idle ticks, too. 0 where it was not traced.
    bubble: the share of a pipeline's time in which a stage does nothing of use (`sharding/pipeline.py`).
    seconds: least time of each resource: "compute", "HBM", and the axes of each network.
    notes: what else is to be known, a line each.
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
        """Bytes of the host's memory, a device's share: by the compiler's account where that is more than ours."""
        return max(sum(self.host_memory.values()), (self.compiled or {}).get("host", 0))

    @property
    def host_fits(self) -> bool:
        return self.host_memory_limit is None or self.host_bytes <= self.host_memory_limit

    @property
    def fits(self) -> bool:
        return self.problem is None

    @property
    def bottleneck(self) -> str | None:
        """The resource that takes longest."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.fits and self.seconds else None

    @property
    def step_seconds(self) -> float | None:
        return None if self.bottleneck is None else self.seconds[self.bottleneck]

    @property
    def mfu_ceiling(self) -> float | None:
        """The most that the utilisation can be: the model's arithmetic at the peak, over the longest time."""
        if self.step_seconds is None or self.peak_flops is None:
            return None
        return self.flops / self.num_devices / self.peak_flops / self.step_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
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
    """Compiles the step of a resolved experiment for the devices, and says what it takes.

    Args:
        read: is called with the compiled program's text.

    Raises:
        UserError: an experiment that cannot be laid out over these devices (`build`).
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
    """Bytes that a program that was refused would take, as the compiler's message has it."""
    size = re.search(r"(\d+(?:\.\d+)?)([GMK]) of \d|memory required[^(]*\((\d+(?:\.\d+)?)([GMK])\)", error)
    if size is None:
        return None
    number, unit = size.group(1, 2) if size[1] else size.group(3, 4)
    return float(number) * UNITS[unit]


def exceeds_device_memory(plan: StepPlan, size: float | None) -> StepPlan:
    """The plan of a step that does not fit and would take so many bytes: why, in a line."""
    account = float(sum(plan.memory.values()))
    largest = max(plan.memory, key=plan.memory.__getitem__)
    beyond = "" if plan.device_memory_limit is None else f" and {amount(plan.device_memory_limit)} are there"
    problem = (
        f"does not fit: the step needs {amount(size or account)} on each {plan.device}{beyond}; "
        f"largest are the {largest}, {amount(plan.memory[largest])}"
    )
    return dataclasses.replace(plan, problem=problem, required_bytes=max(size or 0.0, account))


def exceeds_host_memory(plan: StepPlan) -> StepPlan:
    """The plan of a step whose share of the host's memory is more than there is: why, in a line."""
    assert plan.host_memory_limit is not None
    largest = max(plan.host_memory, key=plan.host_memory.__getitem__, default="")
    detail = f"; largest are the {largest}, {amount(plan.host_memory[largest])}" if largest else ""
    problem = (
        f"does not fit: the step needs {amount(plan.host_bytes)} of host memory for each {plan.device} "
        f"and {amount(plan.host_memory_limit)} are there{detail}"
    )
    return dataclasses.replace(plan, problem=problem)


def step_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The step's second argument, abstract."""
    e = program.experiment
    return abstract_batch(e, e.data.batch_size, program.batch_sharding)


def estimate_step(program: Program, name: str = "") -> StepPlan:
    """What is known before anything is compiled."""
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
    """The schedule of a program that is a pipeline, or None."""
    pipelined = program.mesh.shape["stage"] > 1
    return named_schedule(program.experiment.sharding.pipeline) if pipelined else None


def mesh_name(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"


def zero_formula(program: Program) -> dict[str, float]:
    """Parameters, gradients and optimizer state on a device by ZeRO's formula (`planning/memory_formulas.py`).

    The stage is the one whose tables these are; what tensor parallelism and pipelines split is divided beforehand.
    Parameters that are not trained have neither gradients nor state.
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
    """Over how many devices that share the batch a table splits the model's width."""
    shared = set(as_tuple(sharding.activations.get("batch")))
    used = {axis for axes in rules.values() for axis in as_tuple(axes) if axis in shared}
    return math.prod(sizes[axis] for axis in used)


def attached_device(device: Any) -> Any | None:
    """A device of its kind that this process has: not of those that are only named, which have no memory to ask for."""
    return next((d for d in jax.local_devices() if d.device_kind == device.device_kind), None)


def device_memory_limit(device: Any) -> float | None:
    """Bytes that a program can have: by the attached device's own word, as of a GPU JAX takes three quarters; else
    those of the chip, or a CPU's share of the RAM."""
    if device.platform == "cpu":
        return host_ram() / jax.local_device_count()
    here, chip = attached_device(device), chip_of(device)
    own = None if here is None else (here.memory_stats() or {}).get("bytes_limit")
    return own if own is not None else None if chip is None else chip.memory_limit


def host_memory_limit(device: Any) -> float | None:
    """Bytes of the host's memory, a device's share: of this machine's, where such are attached, else by the chip."""
    if attached_device(device) is None:
        chip = chip_of(device)
        return None if chip is None else chip.host_memory_limit
    if device.platform != "gpu":
        return host_ram() / jax.local_device_count()
    return host_ram() / sum(
        link_group(d) == link_group(device) for d in jax.devices()
    )  # a host's GPUs, of however many processes


def host_ram() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def compiled_memory(memory: Any) -> dict[str, int]:
    """The compiler's account of a program. An output that takes an argument's place (donated state) costs nothing."""
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
    """The plan with its traffic and its rooflines."""
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
    """What the traffic is not as the tables have it: reduce-scatters that the compiler has made all-reduces.

    Args:
        share: bytes of a device's share of the gradients, less than which is no reduction of them all.
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
    """Bytes that a step has to move between a device and its memory, at the least.

    Each microbatch (of a pipeline each tick) reads the weights, as gathered and in the dtype of products, in the
    forward pass, again where that is done again, and in the backward pass; writes and reads what it keeps of
    activations; and adds to the gradients. The update reads and writes parameters and optimizer state, and reads the
    gradients. What comes from the host's memory is written and read on its way in, and on its way out.
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
    # What a schedule keeps is that of all microbatches already, but under 1F1B and the naive one.
    kept = 1 if isinstance(schedule, (GPipe, Circular)) else e.accum_steps
    moved = turns * (passes * weights + 2 * plan.memory["gradients"]) + kept * 2 * plan.memory["activations"]
    state = 2 * plan.memory["optimizer state"] + 4 * plan.host_memory.get("optimizer state", 0)
    return moved + 2 * plan.memory["parameters"] + state
