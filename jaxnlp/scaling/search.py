"""Which table, mesh and number of microbatches make the shortest step: all that fit, compiled and ranked."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.figures.parallelism import amount
from jaxnlp.scaling.planner import Plan, outline, plan
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.presets import PRESETS
from jaxnlp.sharding.rules import Sharding
from jaxnlp.train.experiment import Experiment
from jaxnlp.train.program import build

AXES_OF = {"DDP": "data", "ZERO1": "fsdp", "ZERO2": "fsdp", "ZERO3": "fsdp"}  # where a preset puts all devices
TENSOR = (2, 4, 8, 16)
MICROBATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def tables(experiment: Experiment, num_devices: int) -> Iterator[tuple[str, Sharding]]:
    """(name, tables over a mesh): the config's own first, then the presets; tensor parallelism at each width."""
    yield "config", experiment.sharding
    for name, preset in PRESETS.items():
        if name in AXES_OF:
            axis = AXES_OF[name]
            yield f"{name} {axis}={num_devices}", preset.on(**{axis: num_devices})
        elif not {"stage", "sequence"} & _axes(preset):
            for width in (w for w in TENSOR if num_devices % w == 0):
                rest = num_devices // width
                axis = "fsdp" if "fsdp" in _axes(preset) else "data"
                sizes = {"tensor": width, **({axis: rest} if rest > 1 else {})}
                yield f"{name} {' '.join(f'{a}={n}' for a, n in sizes.items())}", preset.on(**sizes)


def _axes(sharding: Sharding) -> set[str]:
    """Mesh axes that split parameters or optimizer state."""
    rules = (sharding.params, sharding.gradients or {}, sharding.optimizer or {})
    return {
        axis for table in rules for axes in table.values() for axis in ([axes] if isinstance(axes, str) else axes or ())
    }


def search(experiment: Experiment, devices: Sequence[Any], tell: Callable[[str], None] = print) -> list[Plan]:
    """Plans of all tables that fit, the shortest step first; of equal ones that whose other resources take less.

    A table is tried with ever more microbatches until it fits; more would only gather and reduce more often. What by
    our account needs twice the memory there is for its states alone is not compiled.

    Args:
        tell: is called with a line for each plan tried.
    """
    found, seen = [], []
    for name, sharding in tables(experiment, len(devices)):
        sizes: dict[str, Any] = sharding.mesh.sizes(len(devices))
        same = dataclasses.replace(sharding, mesh=MeshConfig(**sizes, slices=sharding.mesh.slices))
        if same in seen:
            continue
        seen.append(same)
        for count in MICROBATCHES:
            e = dataclasses.replace(experiment, sharding=sharding, accum_steps=count)
            title = f"{name}, accum_steps={count}"
            try:
                e.check()
                one = attempt(e, devices, title)
            except UserError as error:
                tell(f"{title}: {error}")
                break
            tell(f"{title}: {one.problem or spoken(one)}")
            if one.fits:
                found.append(one)
                break
            if one.compiled is None and not one.remedies:  # its states alone
                break
    return sorted(found, key=lambda p: (p.step_seconds or 0.0, sum(p.seconds.values())))


def attempt(experiment: Experiment, devices: Sequence[Any], title: str) -> Plan:
    """The plan; not compiled where states alone are far beyond the memory."""
    guess = outline(build(experiment, devices), title)
    states = sum(size for part, size in guess.parts.items() if part not in ("activations", "gradients"))
    if guess.limit is not None and states > guess.limit:
        problem = f"does not fit: parameters and optimizer state alone are {amount(states)}"
        return dataclasses.replace(guess, problem=problem)
    return plan(experiment, devices, title)


def spoken(one: Plan) -> str:
    """A plan in a line."""
    assert one.compiled is not None
    memory = f"{amount(one.compiled['peak'])} on each device"
    if one.step_seconds is None:
        return f"fits, {memory}"
    return f"fits, {memory}; {one.step_seconds * 1e3:,.1f} ms a step at best, bound by {one.bound}"
