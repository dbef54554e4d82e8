"""Searches sharding tables, meshes and microbatch counts: compiles the candidates and ranks those that fit."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.figures.parallelism import amount
from jaxnlp.nn.ring import Ring
from jaxnlp.planning.network import link_group
from jaxnlp.planning.planner import PLAN_ERRORS, estimate_step, first_line, plan_step
from jaxnlp.planning.step_plan import StepPlan
from jaxnlp.sharding.mesh import MeshConfig, tpu_slices
from jaxnlp.sharding.pipeline import Circular, GPipe, OneFOneB
from jaxnlp.sharding.presets import DDP, DP_PP_TP, PP, TP, TP_SP, ZERO1, ZERO2, ZERO3
from jaxnlp.sharding.rules import TENSOR, Sharding, as_tuple
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

WIDTHS = (2, 4, 8, 16)  # sizes of the mesh axes tensor and sequence
STAGES = (2, 4, 8, 16)
MICROBATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SPLIT = {**TENSOR, "embed": "fsdp"}
ZERO3_TP = Sharding(params=SPLIT, gradients=SPLIT, optimizer=SPLIT)
TURNS = (8, 4, 2, 1)  # microbatches per stage of a pipeline; more of them make the bubble smaller


def candidate_shardings(experiment: Experiment, devices: Sequence[Any]) -> Iterator[tuple[str, Sharding]]:
    """(name, sharding) of each candidate: the config's own first, then the presets (`preset_shardings`).

    With several slices, each preset is laid out over one slice and replicated on the others (data parallelism).
    """
    count = tpu_slices(devices)
    yield "config", experiment.sharding
    for name, sharding in preset_shardings(experiment, devices, len(devices) // count):
        if count > 1:
            mesh = dataclasses.replace(sharding.mesh, data=sharding.mesh.data * count, dcn={"data": count})
            name, sharding = f"{name} on each of {count} slices", dataclasses.replace(sharding, mesh=mesh)
        yield name, sharding


def preset_shardings(experiment: Experiment, devices: Sequence[Any], n: int) -> Iterator[tuple[str, Sharding]]:
    """(name, sharding) of each preset over n devices, at every width in `WIDTHS` that divides n.

    ZeRO 3 is also tried over one side of a TPU's torus, replicated over the others, because a reduce-scatter over
    several sides is compiled to an all-reduce; on GPUs, over the devices of one host. ZeRO 3 is also combined with
    tensor parallelism. The sequence is sharded only if the model has ring attention.
    """
    yield preset_over_mesh("DDP", DDP, data=n)
    for name, preset in (("ZERO1", ZERO1), ("ZERO2", ZERO2), ("ZERO3", ZERO3)):
        yield preset_over_mesh(name, preset, fsdp=n)
    if devices[0].platform == "tpu":
        side = max(max(d.coords) + 1 for d in devices)
    else:
        side = n // len(set(map(link_group, devices)))
    if 1 < side < n and n % side == 0:
        yield preset_over_mesh("ZERO3", ZERO3, data=n // side, fsdp=side)
    widths = [width for width in WIDTHS if n % width == 0]
    for name, preset in (("TP", TP), ("TP_SP", TP_SP)):
        for width in widths:
            yield preset_over_mesh(name, preset, data=n // width, tensor=width)
    for width in (width for width in widths if width < n):
        yield preset_over_mesh("ZERO3+TP", ZERO3_TP, fsdp=n // width, tensor=width)
    if isinstance(experiment.model.body.attention, Ring):
        for width in widths:
            yield preset_over_mesh("ZERO3", ZERO3, fsdp=n // width, sequence=width)
    yield from pipeline_shardings(experiment, n)


def pipeline_shardings(experiment: Experiment, n: int) -> Iterator[tuple[str, Sharding]]:
    """Pipelines whose stages divide the layers, with each applicable schedule, without and with tensor parallelism."""
    model = experiment.model.body
    layers = 0 if model.scan_layers is None else model.num_layers
    schedules: list[Any] = [GPipe(), Circular(virtual_stages=2)]
    schedules += [] if model.kind == "encoder-decoder" else [OneFOneB()]
    for stages in (p for p in STAGES if n % p == 0 and layers and layers % p == 0):
        for schedule in schedules:
            if layers % (stages * schedule.virtual_stages) == 0:
                name, sharding = preset_over_mesh("PP", PP, data=n // stages, stage=stages)
                yield f"{name} {type(schedule).__name__}", dataclasses.replace(sharding, pipeline=schedule)
                for width in (w for w in WIDTHS if n % (stages * w) == 0):
                    name, sharding = preset_over_mesh(
                        "DP_PP_TP", DP_PP_TP, data=n // stages // width, stage=stages, tensor=width
                    )
                    yield f"{name} {type(schedule).__name__}", dataclasses.replace(sharding, pipeline=schedule)


def preset_over_mesh(name: str, preset: Sharding, **sizes: int) -> tuple[str, Sharding]:
    """(name with the mesh sizes, the preset over that mesh)."""
    sizes = {axis: size for axis, size in sizes.items() if size > 1}
    return f"{name} {' '.join(f'{axis}={size}' for axis, size in sizes.items())}".strip(), preset.over(**sizes)


Busy = Callable[[str], contextlib.AbstractContextManager[Any]]


def search(
    experiment: Experiment,
    devices: Sequence[Any],
    log: Callable[[str], None] = print,
    busy: Busy = contextlib.nullcontext,
    only: Sequence[str] = (),
) -> list[StepPlan]:
    """Plans of all shardings that fit, by ascending step time; ties go to the lower sum over all resources.

    The number of microbatches increases until the sharding fits, since more microbatches only gather and reduce more
    often. For a pipeline it decreases, since fewer microbatches have a larger bubble. A sharding whose parameters and
    optimizer state alone exceed the memory limit is not compiled.

    Args:
        log: called with one line per plan tried. busy: context manager around each compilation, called with its title.
        only: names or prefixes of names of the shardings to try; empty: all.

    Raises:
        UserError: no sharding has such a name, or none can be laid out over these devices.
    """
    fitting, tried, candidates = [], [], list(candidate_shardings(experiment, devices))
    laid_out, refusal = 0, ""
    selected = [(name, table) for name, table in candidates if not only or name.startswith(tuple(only))]
    if not selected:
        names = ", ".join(name for name, _ in candidates)
        raise UserError(f"--tables={','.join(only)}: no name of a sharding starts with it; available: {names}")
    for name, sharding in selected:
        try:
            sizes: dict[str, Any] = sharding.mesh.sizes(len(devices))
        except UserError as error:
            refusal = refusal or f"{name}: {error}"
            log(f"{name}: {error}")
            continue
        if sizes["stage"] == 1:
            sharding = dataclasses.replace(sharding, optimizer_memory=experiment.sharding.optimizer_memory)
        on_mesh = dataclasses.replace(sharding, mesh=MeshConfig(**sizes, dcn=sharding.mesh.dcn))
        if on_mesh in tried:
            continue
        tried.append(on_mesh)
        for e, title in with_microbatches(experiment, sharding, sizes, name):
            try:
                e.check()
                with busy(title):
                    plan = try_plan(e, devices, title)
            except PLAN_ERRORS as error:
                message = f"{title}: {first_line(error)[:300]}"
                refusal = refusal or message
                log(message)
                break
            laid_out += 1
            log(f"{title}: {plan.problem or describe_plan(plan)}")
            if plan.fits:
                fitting.append(plan)
            if plan.fits or not plan.required_bytes:  # parameters and optimizer state alone do not fit
                break
    if not laid_out:
        raise UserError(
            f"--search: none of {len(selected)} tables can be laid out over {len(devices)} devices; {refusal}"
        )
    return sorted(fitting, key=lambda p: (p.step_seconds or 0.0, sum(p.seconds.values())))


def with_microbatches(
    experiment: Experiment, sharding: Sharding, sizes: dict[str, int], name: str
) -> Iterator[tuple[Experiment, str]]:
    """(experiment, title) with the sharding, for each microbatch count to try."""
    e, stages = dataclasses.replace(experiment, sharding=sharding), sizes["stage"]
    if stages == 1:
        counts = list(MICROBATCHES)
    else:
        if not e.model.body.scan_layers:
            e, name = dataclasses.replace(e, model=e.model.with_body(scan_layers=True)), f"{name}, scan_layers"
        ways = math.prod(sizes[axis] for axis in as_tuple(sharding.activations.get("batch")))
        counts = [turns * stages for turns in TURNS if e.data.batch_size % (turns * stages * ways) == 0] or [stages]
    for count in counts:
        yield dataclasses.replace(e, accum_steps=count), f"{name}, accum_steps={count}"


def try_plan(experiment: Experiment, devices: Sequence[Any], title: str) -> StepPlan:
    """The plan of a step. It is not compiled if parameters and optimizer state alone exceed the memory limit."""
    guess = estimate_step(build(experiment, devices), title)
    states = sum(size for part, size in guess.memory.items() if part not in ("activations", "gradients"))
    if guess.device_memory_limit is not None and states > guess.device_memory_limit:
        problem = f"does not fit: parameters and optimizer state alone take {amount(states)}"
        return dataclasses.replace(guess, problem=problem)
    return plan_step(experiment, devices, title)


def describe_plan(plan: StepPlan) -> str:
    """One line about a plan that fits."""
    assert plan.compiled is not None
    memory = f"{amount(plan.compiled['peak'])} on each device"
    if plan.step_seconds is None:
        return f"fits, {memory}"
    return f"fits, {memory}; {plan.step_seconds * 1e3:,.1f} ms per step at least, bound by {plan.bottleneck}"
