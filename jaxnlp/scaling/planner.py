"""What a training step takes on a mesh: memory, communication and time, from the step compiled for those devices.

Nothing runs. Memory and collectives are the compiled program's own; arithmetic is the model's (`flops_per_token`), for
compilers count the body of a loop once. Times are rooflines (Williams et al. 2009): each resource alone at its maker's
figure, the longest the least that a step can take.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxnlp.figures.parallelism import amount
from jaxnlp.scaling import chips
from jaxnlp.scaling.hlo import Collective, collectives
from jaxnlp.scaling.memory import state_bytes
from jaxnlp.sharding.rules import Sharding, as_tuple, shardings
from jaxnlp.train.experiment import Experiment, flops_per_token, trunk, with_trunk
from jaxnlp.train.plan import abstract_gradients, activation_bytes, device_bytes
from jaxnlp.train.program import Program, build

WORDS = {"G": 2**30, "M": 2**20, "K": 2**10}
COMPUTE, MEMORY = "compute", "HBM"


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along the same mesh axes, in a step. bytes: that each device sends over the network,
    as a ring would; over DCN what is left once slices have reduced, or before they gather, within.

    network: "ICI" or "NVLink" (links between chips), "DCN" (between slices or hosts), "memory" (a host's).
    seconds: at best; None: the speed is not known.
    """

    kind: str
    axes: tuple[str, ...]
    network: str
    count: int
    bytes: float
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step on a mesh, bytes and seconds of one device.

    parts: what holds memory, by our account: parameters, optimizer state and, while a step is under way, gradients
        and activations. compiled: by the compiler's: arguments, temporaries, outputs that take no argument's place,
        host memory, and `peak`. None where it does not compile.
    theory: bytes of parameters, gradients and optimizer state by ZeRO's formula, and the bytes a parameter it counts.
    limit: bytes that a program can have. problem: why it does not fit, in a line; None where it does.
    remedies: changes of the config, each with what it would take by our account.
    flops: operations of the whole step, of the model; recomputed: what remat adds to the forward and backward pass.
    seconds: least time of each resource: "compute", "HBM", and the axes of each network.
    """

    name: str
    device: str
    num_devices: int
    mesh: dict[str, int]
    parameters: int
    tokens: int
    accum_steps: int
    parts: dict[str, int]
    theory: dict[str, float]
    limit: float | None
    flops: float
    recomputed: float
    peak_flops: float | None
    peak_source: str
    compiled: dict[str, int] | None = None
    problem: str | None = None
    remedies: tuple[str, ...] = ()
    traffic: tuple[Traffic, ...] = ()
    hbm_bytes: float = 0.0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0

    @property
    def fits(self) -> bool:
        return self.problem is None

    @property
    def bound(self) -> str | None:
        """The resource that takes longest."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.fits and self.seconds else None

    @property
    def step_seconds(self) -> float | None:
        return None if self.bound is None else self.seconds[self.bound]

    @property
    def mfu_ceiling(self) -> float | None:
        """The most that the utilisation can be: the model's arithmetic at the peak, over the longest time."""
        if self.step_seconds is None or self.peak_flops is None:
            return None
        return self.flops / self.num_devices / self.peak_flops / self.step_seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        found = dataclasses.asdict(self)
        derived = ("fits", "bound", "step_seconds", "mfu_ceiling")
        return {**found, **{name: getattr(self, name) for name in derived}}


def plan(experiment: Experiment, devices: Sequence[Any], name: str = "") -> Plan:
    """Compiles the step of a resolved experiment for the devices, and says what it takes.

    Raises:
        UserError: an experiment that cannot be laid out over these devices (`build`).
    """
    e = dataclasses.replace(experiment, steps_per_call=1)
    program = build(e, devices)
    found = outline(program, name)
    begun = time.monotonic()
    try:
        compiled = program.step.lower(program.abstract, batch(program)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(found, problem=told(found, str(error)), remedies=remedies(program, found.limit))
    spent = time.monotonic() - begun
    found = dataclasses.replace(found, compiled=account(compiled.memory_analysis()), compile_seconds=round(spent, 1))
    assert found.compiled is not None
    if found.limit is not None and found.compiled["peak"] > found.limit:
        problem = told(found, "")
        return dataclasses.replace(found, problem=problem, remedies=remedies(program, found.limit))
    return timed(found, program, collectives(compiled.as_text()))


def batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """The step's second argument, abstract."""
    data = program.experiment.data
    return {
        name: jax.ShapeDtypeStruct((data.batch_size, *shape), dtype, sharding=program.batch_sharding)
        for name, (shape, dtype) in data.examples.shapes(data).items()
    }


def outline(program: Program, name: str = "") -> Plan:
    """What is known before anything is compiled."""
    e, device = program.experiment, program.mesh.devices.flat[0]
    leaves = jax.tree.leaves(program.abstract.params)
    tokens = e.data.batch_size * e.data.seq_len
    policy = getattr(trunk(e.model), "policy", None)
    dtype = policy.operand_dtype if policy is not None else np.dtype(np.float32)
    peak, source = chips.flops(device, dtype)
    if e.peak_flops is not None:
        peak, source = e.peak_flops, f"{e.peak_flops:.4g} FLOP/s, as configured"
    parts = {
        "parameters": sum(map(device_bytes, leaves)),
        "gradients": gradient_bytes(program),
        "optimizer state": sum(map(device_bytes, jax.tree.leaves(program.abstract.opt_state))),
        "activations": activation_bytes(program),
    }
    return Plan(
        name=name or mesh_name(program.mesh.shape),
        device=device.device_kind,
        num_devices=program.mesh.size,
        mesh={axis: size for axis, size in program.mesh.shape.items() if size > 1},
        parameters=sum(x.size for x in leaves),
        tokens=tokens,
        accum_steps=e.accum_steps,
        parts=parts,
        theory=theory(program),
        limit=limit(device),
        flops=flops_per_token(e) * tokens,
        recomputed=1 / 3 if getattr(trunk(e.model), "remat", "none") == "full" else 0.0,
        peak_flops=peak,
        peak_source=source,
    )


def mesh_name(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"


def gradient_bytes(program: Program) -> int:
    """Gradients on a device; in float32 where microbatches are summed."""
    width = lambda x: 4 if program.experiment.accum_steps > 1 else x.dtype.itemsize
    return sum(device_bytes(x) // x.dtype.itemsize * width(x) for x in jax.tree.leaves(abstract_gradients(program)))


def theory(program: Program) -> dict[str, float]:
    """Parameters, gradients and optimizer state on a device by ZeRO's formula (`scaling/memory.py`).

    The stage is the one whose tables these are; what tensor parallelism and pipelines split is divided beforehand.
    """
    e, sizes = program.experiment, program.mesh.shape
    leaves = jax.tree.leaves(program.abstract.params)
    count = sum(x.size for x in leaves)
    weight = max(x.dtype.itemsize for x in leaves)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract.opt_state)) / count
    ways = {field: split(getattr(e.sharding, field) or e.sharding.params, e.sharding, sizes) for field in TABLES}
    stage = 3 if ways["params"] > 1 else 2 if ways["gradients"] > 1 else 1 if ways["optimizer"] > 1 else 0
    own = sizes["tensor"] * sizes.get("stage", 1)
    gradient = 4 if e.accum_steps > 1 else weight
    per = {"weight": weight, "gradient": gradient, "optimizer": round(state)}
    size = state_bytes(count / own, max(ways.values()), stage, **per)
    return {"stage": stage, "bytes": size, **{f"{name} bytes": size for name, size in per.items()}}


TABLES = ("params", "gradients", "optimizer")


def split(rules: Mapping[str, Any], sharding: Sharding, sizes: Mapping[str, int]) -> int:
    """Over how many devices that share the batch a table splits the model's width."""
    shared = set(as_tuple(sharding.activations.get("batch")))
    used = {axis for axes in rules.values() for axis in as_tuple(axes) if axis in shared}
    return math.prod(sizes[axis] for axis in used)


def limit(device: Any) -> float | None:
    """Bytes that a program can have on a device: the chip's, or the device's own word, or a CPU's share of the RAM."""
    chip = chips.chip_of(device)
    if chip is not None:
        return chip.limit
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def account(memory: Any) -> dict[str, int]:
    """The compiler's account of a program. An output that takes an argument's place (donated state) costs nothing."""
    kept = max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
    found = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "other outputs": kept,
        "host": memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
    }
    return {**found, "peak": sum(found[name] for name in ("arguments", "temporaries", "other outputs"))}


# Time


def timed(found: Plan, program: Program, ops: Sequence[Collective]) -> Plan:
    """The plan with its traffic and its rooflines."""
    chip, n = chips.chip_of(program.mesh.devices.flat[0]), program.mesh.size
    groups: dict[tuple[str, tuple[str, ...], str], list[tuple[int, float, float | None]]] = {}
    for op in (placed(op, program.mesh) for op in ops):
        network, sent, one = wire(op, program.mesh, chip)
        key = (op.kind, op.axes(program.mesh.shape), network)
        groups.setdefault(key, []).append((op.count, op.count * sent, None if one is None else op.count * one))
    rows = [Traffic(*key, *(total(column) for column in zip(*group, strict=True))) for key, group in groups.items()]
    traffic = tuple(sorted(rows, key=lambda row: -row.bytes))
    moved = hbm_traffic(found, program)
    seconds: dict[str, float] = {}
    if found.peak_flops:
        seconds[COMPUTE] = found.flops * (1 + found.recomputed) / n / found.peak_flops
    if chip is not None:
        seconds[MEMORY] = moved / chip.hbm_bandwidth
    for row in traffic:
        if row.seconds is not None:
            name = f"{row.network} {'+'.join(row.axes)}"
            seconds[name] = seconds.get(name, 0.0) + row.seconds
    return dataclasses.replace(found, traffic=traffic, hbm_bytes=moved, seconds=seconds)


def total(column: Sequence[Any]) -> Any:
    """The sum, or None if a part of it is not known."""
    return None if None in column else sum(column)


def hbm_traffic(found: Plan, program: Program) -> float:
    """Bytes that a step has to move between a device and its memory, at the least.

    Each microbatch reads the weights, as gathered and in the dtype of products, in the forward pass, again where that
    is done again, and in the backward pass; writes and reads what it keeps of activations; and adds to the gradients.
    The update reads and writes parameters and optimizer state, and reads the gradients.
    """
    e, params = program.experiment, program.abstract.params
    policy = getattr(trunk(e.model), "policy", None)
    layout = shardings(params, program.axes, e.sharding.used, program.mesh)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(layout), strict=True)
    width = lambda x: min(x.dtype.itemsize, policy.operand_dtype.itemsize if policy is not None else 4)
    weights = sum(math.prod(s.shard_shape(x.shape)) * width(x) for x, s in pairs)
    passes = 3 if found.recomputed else 2
    each = passes * weights + 2 * found.parts["activations"] + 2 * found.parts["gradients"]
    return e.accum_steps * each + 2 * (found.parts["parameters"] + found.parts["optimizer state"])


def placed(op: Collective, mesh: Any) -> Collective:
    """With members as places in the mesh. A program for several TPU slices numbers devices within a slice, and those
    that it talks to in others by their ids."""
    devices = list(mesh.devices.flat)
    if op.between_slices:
        place = {device.id: i for i, device in enumerate(devices)}
    elif len({where(d) for d in devices}) > 1 and hasattr(devices[0], "coords"):
        place = [i for i, device in enumerate(devices) if where(device) == where(devices[0])]
        op = op if op.members else dataclasses.replace(op, members=(tuple(range(len(place))),))
    else:
        return op
    return dataclasses.replace(op, members=tuple(tuple(place[i] for i in row) for row in op.members))


def wire(op: Collective, mesh: Any, chip: chips.Chip | None) -> tuple[str, float, float | None]:
    """(network, bytes that a device sends over it, seconds of one execution at best).

    The network is "DCN" between slices or hosts; within one ICI, NVLink or memory.
    """
    devices = mesh.devices.flatten()
    group = [devices[i] for i in (op.members[0] if op.members else range(mesh.size))]
    slices = max((len({where(devices[i]) for i in row}) for row in op.members), default=len(set(map(where, devices))))
    if slices > 1:
        # What has been reduced within each slice crosses once, a device's share of it each.
        each = 1 if op.kind in ("collective-permute", "all-to-all") else slices / len(group)
        across = dataclasses.replace(op, members=(tuple(range(slices)),), bytes=int(op.bytes * each))
        crossed = across.sent(slices)
        return "DCN", crossed, None if chip is None or chip.dcn is None else crossed / chip.dcn
    linked = None if chip is None else link_speed(chip, group, devices)
    name = "memory" if chip is None else "NVLink" if chip.switched else "ICI"
    sent = op.sent(mesh.size)
    return name, sent, None if linked is None else sent / linked


def where(device: Any) -> int:
    """The slice, or of other devices the host, whose members talk over links of their own."""
    found = getattr(device, "slice_index", None)
    return found if found is not None else 0 if hasattr(device, "coords") else device.process_index


def link_speed(chip: chips.Chip, group: Sequence[Any], devices: Sequence[Any]) -> float:
    """Bytes a second that a device can send to others of its group: both ways along each side of the torus over which
    the group lies, one way where that side does not close to a ring."""
    if chip.switched:
        return chip.link * chip.links
    coordinates = np.array([d.coords for d in group])
    extent = np.array([d.coords for d in devices]).max(axis=0) + 1
    sides = [i for i in range(coordinates.shape[1]) if len(set(coordinates[:, i])) > 1]
    if not sides:  # the two halves of one chip
        return chip.link * chip.links
    return chip.link * sum(2 if extent[i] >= chip.wraps else 1 for i in sides)


# What does not fit


def told(found: Plan, error: str) -> str:
    """Why a plan does not fit, in a line."""
    needed = re.search(r"(\d+(?:\.\d+)?)([GMK]) of \d|memory required[^(]*\((\d+(?:\.\d+)?)([GMK])\)", error)
    if needed:
        number, unit = needed.group(1, 2) if needed[1] else needed.group(3, 4)
        size = float(number) * WORDS[unit]
    else:
        size = float(found.compiled["peak"]) if found.compiled else float(sum(found.parts.values()))
    largest = max(found.parts, key=found.parts.__getitem__)
    beyond = "" if found.limit is None else f" and {amount(found.limit)} are there"
    return (
        f"does not fit: the step needs {amount(size)} on each {found.device}{beyond}; "
        f"largest are the {largest}, {amount(found.parts[largest])}"
    )


def remedies(program: Program, available: float | None) -> tuple[str, ...]:
    """Changes of the config that take less, each with what would be left by our account; those that fit first."""
    e, devices = program.experiment, list(program.mesh.devices.flat)
    found = []
    for change, changed in candidates(e, program.mesh.shape):
        try:
            size = sum(outline(build(changed, devices)).parts.values())
        except ValueError:  # it does not divide
            continue
        fits = available is not None and size <= 0.9 * available
        line = (not fits, f"{change}: {amount(size)} by estimate{', fits' if fits else ''}")
        if found and change.startswith("accum_steps") and "accum_steps" in found[-1][1]:
            found[-1] = line
        else:
            found.append(line)
        if fits and change.startswith("accum_steps"):
            break  # more microbatches than it needs only cost time
    now = outline(program).parts
    states = sum(size for part, size in now.items() if part != "activations")
    if available is not None and states > available:
        found.append((True, f"more devices: parameters, gradients and optimizer state alone are {amount(states)}"))
    return tuple(text for _, text in sorted(found, key=lambda item: item[0]))


def candidates(e: Experiment, sizes: Mapping[str, int]) -> list[tuple[str, Experiment]]:
    """(what to write in the config, the experiment with it); numbers of microbatches last, from few to many."""
    found = []
    if getattr(trunk(e.model), "remat", "full") != "full":
        found.append(("model.remat='full'", dataclasses.replace(e, model=with_trunk(e.model, remat="full"))))
    stages = {"optimizer": "ZERO1", "gradients": "ZERO2", "params": "ZERO3"}
    together = sizes["data"] * sizes["fsdp"]
    mesh = dataclasses.replace(e.sharding.mesh, data=1, fsdp=together, slices={})
    changed = {field: dict(getattr(e.sharding, field) or e.sharding.params) for field in TABLES}
    for field, name in stages.items():
        if together == 1 or split(changed[field], e.sharding, {**sizes, "data": 1, "fsdp": together}) > 1:
            continue
        changed[field]["embed"] = "fsdp"
        tables = {table: dict(rules) for table, rules in changed.items()}
        sharding = dataclasses.replace(e.sharding, mesh=mesh, **tables)
        found.append((f"sharding as {name}, fsdp={together}", dataclasses.replace(e, sharding=sharding)))
    rows = e.data.batch_size // math.prod(sizes[axis] for axis in as_tuple(e.sharding.activations.get("batch")))
    more = (n for n in range(e.accum_steps + 1, rows + 1) if rows % n == 0)
    return found + [(f"accum_steps={n}", dataclasses.replace(e, accum_steps=n)) for n in more]
