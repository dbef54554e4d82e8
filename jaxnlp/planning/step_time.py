"""Lower bounds on the time of a training step: rooflines of compute, memory and network."""

import dataclasses
import math
from collections.abc import Sequence

import jax

from jaxnlp.figures.parallelism import amount
from jaxnlp.hardware import chip_of
from jaxnlp.nn.policy import Policy
from jaxnlp.planning.hlo import Collective
from jaxnlp.planning.network import Traffic, traffic_of
from jaxnlp.planning.step_plan import StepPlan
from jaxnlp.sharding.pipeline import Circular, GPipe, OneFOneB, ticks
from jaxnlp.sharding.rules import as_tuple, shardings
from jaxnlp.training.step.program import Program

COMPUTE, MEMORY = "compute", "HBM"


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
    bytes_of = {
        kind: sum(row.bytes for row in traffic if row.kind == kind and over <= set(row.axes))
        for kind in ("all-reduce", "reduce-scatter")
    }
    if not over or bytes_of["all-reduce"] <= max(bytes_of["reduce-scatter"], share):
        return ()
    axes, reduced = "+".join(sorted(over)), amount(bytes_of["all-reduce"])
    line = (
        f"gradients are sharded over {axes}, but {reduced} of all-reduces are along it, twice a reduce-scatter's bytes"
    )
    if device.platform == "cpu":
        return (f"{line}: the CPU compiler has no reduce-scatter",)
    why = "the TPU compiler replaces reduce-scatters over several sides of a torus"
    return (f"{line}: {why}; counted as compiled. With {axes} along one side, and data along others, they remain",)


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
    e, params, schedule = program.experiment, program.abstract.all_params, program.pipeline_schedule
    policy = e.model.body.policy or Policy()
    layout = shardings(params, program.all_axes, e.sharding.compute_rules, program.mesh)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(layout), strict=True)
    width = lambda x: min(x.dtype.itemsize, policy.operand_dtype.itemsize)
    weights = sum(math.prod(s.shard_shape(x.shape)) * width(x) for x, s in pairs)
    turns = (
        ticks(schedule, program.mesh.shape["stage"], e.accum_steps) / schedule.virtual_stages
        if schedule
        else e.accum_steps
    )
    recomputed = plan.executed_flops * (1 - plan.bubble) / plan.flops - 1
    passes = 2 + min(max(0.0, 3 * recomputed), 1.0 + isinstance(schedule, OneFOneB))
    # GPipe and Circular save the activations of all microbatches; otherwise the estimate covers one microbatch.
    repeats = 1 if isinstance(schedule, (GPipe, Circular)) else e.accum_steps
    num_bytes = turns * (passes * weights + 2 * plan.memory["gradients"]) + repeats * 2 * plan.memory["activations"]
    state = 2 * plan.memory["optimizer state"] + 4 * plan.host_memory.get("optimizer state", 0)
    return num_bytes + 2 * plan.memory["parameters"] + state
