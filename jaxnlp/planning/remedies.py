"""Suggests config changes that make a step fit in memory: selected by estimate, then verified by compiling."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxnlp.figures.parallelism import amount
from jaxnlp.planning.planner import PLAN_ERRORS, estimate_step, first_line, num_shards, plan_step
from jaxnlp.planning.step_plan import StepPlan
from jaxnlp.sharding.presets import ZERO1, ZERO2, ZERO3
from jaxnlp.sharding.rules import Sharding, as_tuple
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

MAX_COMPILED = 5  # maximum number of compiled options
MARGIN = 0.95  # fraction of the memory that an estimate may use
LargerTopology = Callable[[int], tuple[str, Sequence[Any]] | None]


@dataclasses.dataclass(frozen=True)
class Option:
    """A config change, its description, and the experiment and devices with it.

    size: estimated bytes per device. host: the device's share of host memory in bytes.
    """

    change: str
    experiment: Experiment
    devices: Sequence[Any]
    size: float
    host: float = 0.0


@dataclasses.dataclass(frozen=True)
class MemoryBudget:
    """Bytes that an option may use. device: with a margin, for an estimate. host: a device's share, with no margin."""

    device: float
    host: float

    def holds(self, option: Option) -> bool:
        return option.size <= self.device and option.host <= self.host


def with_remedies(
    plan: StepPlan,
    experiment: Experiment,
    devices: Sequence[Any],
    larger: LargerTopology | None = None,
    busy: Callable[[str], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> StepPlan:
    """Adds remedies to the plan of a step that does not fit: single changes, then combined changes, then more devices.

    Options that fit by estimate are compiled in this order until one fits, at most `MAX_COMPILED`. Estimates are scaled
    by the ratio of the compiler's memory to our estimate for the original step.

    Args:
        larger: number of devices -> (name of a topology of that size, its devices), or None if there is none.
        busy: context manager around each compilation, called with its description.
    """
    assert plan.device_memory_limit is not None
    scale = max(1.0, plan.required_bytes / sum(plan.memory.values()))
    e = dataclasses.replace(experiment, steps_per_call=1)
    budget = MemoryBudget(
        MARGIN * plan.device_memory_limit, math.inf if plan.host_memory_limit is None else plan.host_memory_limit
    )
    compiled, fits = [], False
    is_smaller = lambda o: o.size < scale * sum(plan.memory.values()) if plan.host_fits else o.host < plan.host_bytes
    single = [option for option in single_changes(e, devices, scale) if is_smaller(option)]
    fitting = [option for option in single if budget.holds(option)]
    for option in _chain(
        fitting, lambda: combined_changes(e, devices, scale, budget), lambda: larger_topologies(plan, e, larger, budget)
    ):
        if fits or len(compiled) == MAX_COMPILED:
            break
        try:
            with busy(f"does not fit; compiling with {option.change}"):
                candidate = plan_step(option.experiment, option.devices)
        except PLAN_ERRORS as error:
            compiled.append((option.change, f"{option.change}: does not compile ({first_line(error)[:200]})"))
            continue
        fits = candidate.fits
        size = candidate.compiled["peak"] if candidate.compiled else candidate.required_bytes
        usage = (
            f"{amount(size)} as compiled" if candidate.host_fits else f"{amount(candidate.host_bytes)} of host memory"
        )
        compiled.append((option.change, f"{option.change}: {usage}, {'fits' if fits else 'still too much'}"))
    lines = [line for _, line in reversed(compiled)] + _estimates(single, [change for change, _ in compiled], budget)
    states = sum(size for part, size in plan.memory.items() if part != "activations")
    if states > plan.device_memory_limit:
        lines.append(
            f"parameters, gradients and optimizer state alone take {amount(states)} on each device without a change"
        )
    return dataclasses.replace(plan, remedies=tuple(lines))


def _estimates(options: Sequence[Option], compiled: Sequence[str], budget: MemoryBudget) -> list[str]:
    """One line per option that was not compiled. Only the largest count of microbatches, and only if none fits."""
    counts = [option for option in options if option.change.startswith("accum_steps")]
    lines = []
    for option in options:
        if option.change in compiled or (option in counts and (option is not counts[-1] or budget.holds(option))):
            continue
        host = f" and {amount(option.host)} of host memory" if option.host else ""
        end = "" if budget.holds(option) else ", still too much"
        lines.append(f"{option.change}: {amount(option.size)}{host} by estimate{end}")
    return lines


def _chain(listed: Sequence[Option], *generators: Callable[[], Iterator[Option]]) -> Iterator[Option]:
    yield from listed
    for options in generators:
        yield from options()


def make_option(change: str, e: Experiment, devices: Sequence[Any], scale: float) -> Option | None:
    """The option with its estimated bytes; None if the experiment cannot be laid out. `scale` applies to the device."""
    try:
        plan = estimate_step(build(e, devices))
    except ValueError:
        return None
    return Option(change, e, devices, scale * sum(plan.memory.values()), plan.host_bytes)


def single_changes(e: Experiment, devices: Sequence[Any], scale: float) -> list[Option]:
    """Options with one change: more microbatches, remat, the next ZeRO stages, optimizer state in the other memory."""
    counts = [(f"accum_steps={n}", dataclasses.replace(e, accum_steps=n)) for n in microbatches(e, len(devices))]
    options = (
        make_option(change, changed, devices, scale) for change, changed in [*counts, *config_changes(e, len(devices))]
    )
    return [option for option in options if option is not None]


def combined_changes(e: Experiment, devices: Sequence[Any], scale: float, budget: MemoryBudget) -> Iterator[Option]:
    """Options that combine a change with more microbatches and fit by estimate, fewest microbatches first."""
    changes = config_changes(e, len(devices))
    for change, changed in [*changes, *_both(changes, e)]:
        for n in microbatches(changed, len(devices)):
            split = dataclasses.replace(changed, accum_steps=n)
            option = make_option(f"{change} and accum_steps={n}", split, devices, scale)
            if option is not None and budget.holds(option):
                yield option


def _both(changes: Sequence[tuple[str, Experiment]], e: Experiment) -> list[tuple[str, Experiment]]:
    """The highest ZeRO stage that shards the parameters, combined with remat."""
    remat = [changed for change, changed in changes if change.startswith("model.remat")]
    tables = [(change, changed) for change, changed in changes if changed.sharding.params != e.sharding.params]
    return [(f"model.remat='full', {c}", dataclasses.replace(t, model=remat[0].model)) for c, t in tables[-1:] if remat]


def larger_topologies(
    plan: StepPlan, e: Experiment, larger: LargerTopology | None, budget: MemoryBudget
) -> Iterator[Option]:
    """ZeRO 3 on 2, 4, 8, ... times the devices, each with the fewest microbatches that fit by estimate."""
    if larger is None:
        return
    states = sum(size for part, size in plan.memory.items() if part != "activations")
    if e.model.body.remat not in (None, "full"):
        e = dataclasses.replace(e, model=e.model.with_body(remat="full"))
    for doubled in range(1, 12):
        count = plan.num_devices * 2**doubled
        if e.data.batch_size % count:
            return
        if states / 2**doubled > budget.device or (topology := larger(count)) is None:
            continue
        name, devices = topology
        on_more = dataclasses.replace(e, sharding=ZERO3.over(fsdp=count))
        rows = e.data.batch_size // count
        for n in (n for n in range(min(e.accum_steps, rows), rows + 1) if rows % n == 0):
            split = dataclasses.replace(on_more, accum_steps=n)
            change = f"{name} with sharding as ZERO3, accum_steps={n}, model.remat='full'"
            option = make_option(change, split, devices, 1 / 0.7)  # with space for what the compiler adds
            if option is not None and budget.holds(option):
                yield option
                break


def microbatches(e: Experiment, num_devices: int) -> list[int]:
    """Microbatch counts above the experiment's that divide the rows per batch shard."""
    sizes = e.sharding.mesh.sizes(num_devices)
    rows = e.data.batch_size // math.prod(sizes[axis] for axis in as_tuple(e.sharding.activations.get("batch")))
    return [n for n in range(e.accum_steps + 1, rows + 1) if rows % n == 0]


def same_tables(first: Sharding, second: Sharding) -> bool:
    """Whether two shardings have the same tables for the state and the activations."""
    tables = lambda s: [s.state_rules, s.activations]
    return tables(first) == tables(second)


def config_changes(e: Experiment, num_devices: int) -> list[tuple[str, Experiment]]:
    """(config change as text, experiment with the change), for all changes except the number of microbatches."""
    sizes: Mapping[str, int] = e.sharding.mesh.sizes(num_devices)
    changes = []
    if e.model.body.remat not in (None, "full"):
        changes.append(("model.remat='full'", dataclasses.replace(e, model=e.model.with_body(remat="full"))))
    stages = {"optimizer": ZERO1, "gradients": ZERO2, "params": ZERO3}
    dcn: Any = e.sharding.mesh.dcn
    slices = dict(dcn)
    copies = slices.pop("data", 1) * slices.pop("fsdp", 1)  # one copy on each slice, so that shards stay within a slice
    fsdp = sizes["data"] * sizes["fsdp"] // copies
    slices |= {"data": copies} if copies > 1 else {}
    mesh = dataclasses.replace(e.sharding.mesh, data=copies, fsdp=fsdp, dcn=slices)
    changed = {field: dict(rules) for field, rules in e.sharding.state_rules.items()}
    sharded: list[str] = []
    for number, (field, preset) in enumerate(stages.items(), 1):
        if fsdp == 1 or num_shards(changed[field], e.sharding, {**sizes, "data": copies, "fsdp": fsdp}) > 1:
            continue
        changed[field]["embed"] = "fsdp"
        sharded.append(field)
        tables = {table: dict(rules) for table, rules in changed.items()}
        sharding = dataclasses.replace(e.sharding, mesh=mesh, **tables)
        over = f"data={copies}, fsdp={fsdp}" if copies > 1 else f"fsdp={fsdp}"
        name = f"ZERO{number}" if same_tables(sharding, preset) else f"'embed' on 'fsdp' in {', '.join(sharded)}"
        changes.append((f"sharding as {name}, {over}", dataclasses.replace(e, sharding=sharding)))
    if e.sharding.optimizer_memory == "device" and e.model.body.scan_layers:
        host = dataclasses.replace(e.sharding, optimizer_memory="host")
        changes.append(("sharding.optimizer_memory='host'", dataclasses.replace(e, sharding=host)))
    if e.sharding.optimizer_memory == "host":
        device = dataclasses.replace(e.sharding, optimizer_memory="device")
        changes.append(("sharding.optimizer_memory='device'", dataclasses.replace(e, sharding=device)))
    return changes
