"""The plan of a training step on a mesh: sizes, memory, communication and time, as a record."""

import dataclasses
from typing import Any

from jaxnlp.figures.parallelism import amount
from jaxnlp.planning.network import Traffic


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


def exceeds_device_memory(plan: StepPlan, size: float | None) -> StepPlan:
    """The plan with `problem` set: the step needs `size` bytes of device memory (None: unknown) and does not fit."""
    estimate = float(sum(plan.memory.values()))
    largest = max(plan.memory, key=plan.memory.__getitem__)
    limit = "" if plan.device_memory_limit is None else f" and {amount(plan.device_memory_limit)} are available"
    problem = (
        f"does not fit: the step needs {amount(size or estimate)} on each {plan.device}{limit}; "
        f"largest part: {largest}, {amount(plan.memory[largest])}"
    )
    return dataclasses.replace(plan, problem=problem, required_bytes=max(size or 0.0, estimate))


def exceeds_host_memory(plan: StepPlan) -> StepPlan:
    """The plan with `problem` set: the step needs more host memory per device than is available."""
    assert plan.host_memory_limit is not None
    largest = max(plan.host_memory, key=plan.host_memory.__getitem__, default="")
    detail = f"; largest part: {largest}, {amount(plan.host_memory[largest])}" if largest else ""
    problem = (
        f"does not fit: the step needs {amount(plan.host_bytes)} of host memory for each {plan.device} "
        f"and {amount(plan.host_memory_limit)} are available{detail}"
    )
    return dataclasses.replace(plan, problem=problem)
