"""Measurements of a run: its speed from the metric log, and the time of a step by operation class from its trace."""

import dataclasses
import pathlib
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxnlp.errors import UserError
from jaxnlp.planning.hlo import COLLECTIVE, KINDS, LOOP, MATMUL, OTHER
from jaxnlp.planning.step_plan import StepPlan
from jaxnlp.training.experiment import Experiment, abstract_batch
from jaxnlp.training.run_folder.metric_log import LOG, read_log
from jaxnlp.training.step.program import build

CLASSES = (MATMUL, COLLECTIVE, OTHER)
STEP = re.compile(r"jit_step\b")  # the program that `make_step`'s function is jitted to, one step a call or several
PRODUCT = re.compile(r"dot|conv(?!ert)|gemm|matmul|cutlass|attention", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Trace:
    """Profiled steps of a run (`--profile_steps`). Times are seconds per step and device.

    steps: number of profiled steps. step_seconds: time from the first to the last operation, divided by `steps`. It
        includes the profiler's overhead and any work between steps, such as an evaluation.
    by_class: time in operations of each class. Overlapping operations are each counted in full, and a collective
        includes the time it waits for other devices. longest: the five operations that take longest.
    """

    path: str
    steps: int
    step_seconds: float
    by_class: dict[str, float]
    longest: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measured speed of a run, for comparison with its plan.

    rows: number of log rows with a speed; speed and MFU are medians over these. flops: the model's FLOP/s per device.
    mfu: relative to the peak that the run used; None if the peak was unknown.
    """

    rows: int
    step_seconds: float
    tokens_per_second: float
    flops: float
    mfu: float | None
    trace: Trace | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def multi_step_program_text(experiment: Experiment, devices: Sequence[Any]) -> str:
    """HLO text of the compiled step of a run with `steps_per_call` > 1; a plan compiles one step per call."""
    program = build(experiment, devices)
    batch = abstract_batch(experiment, experiment.data.batch_size)
    stack = {k: jax.ShapeDtypeStruct((experiment.steps_per_call, *x.shape), x.dtype) for k, x in batch.items()}
    lowered = program.step.lower(program.abstract, stack)
    with program.context():
        return lowered.compile().as_text()


def measure_run(workdir: pathlib.Path, plan: StepPlan, classes: Mapping[str, str], steps_per_call: int = 1) -> Measured:
    """Reads the log of a run, and its newest trace if there is one.

    Args:
        plan: of the run. classes: of the program's instructions (`hlo.instruction_classes`), to classify the trace.
        steps_per_call: of its config; the trace has one annotation per call.

    Raises:
        UserError: the folder has no log, or its log has no speed.
    """
    rows = [row for row in read_log(workdir / LOG) if row["kind"] == "train" and "tokens_per_second" in row]
    if not rows:
        raise UserError(
            f"--workdir={workdir}: no speed in {LOG}; expected the folder of a run with several logged steps"
        )
    rate = statistics.median(row["tokens_per_second"] for row in rows)
    shares = [row["mfu"] for row in rows if "mfu" in row]
    seconds = plan.tokens / rate
    return Measured(
        rows=len(rows),
        step_seconds=seconds,
        tokens_per_second=rate,
        flops=plan.flops / plan.num_devices / seconds,
        mfu=statistics.median(shares) if shares else None,
        trace=newest_trace(workdir, classes, steps_per_call),
    )


def newest_trace(workdir: pathlib.Path, classes: Mapping[str, str], steps_per_call: int = 1) -> Trace | None:
    """The newest trace in a run folder, of its first host; None if there is none or it recorded no device."""
    files = sorted(
        workdir.glob("profile/plugins/profile/*/*.xplane.pb"), key=lambda path: (path.parent.name, path.name)
    )
    if not files:
        return None
    newest = min(path for path in files if path.parent == files[-1].parent)
    data: Any = jax.profiler.ProfileData.from_file(str(newest))
    steps = steps_per_call * len({stats["step_num"] for stats in _annotated(data)})
    operations = list(step_operations(data))
    if not steps or not operations:
        return None
    devices = len({device for device, *_ in operations})
    start_ns, end_ns = (
        min(start for _, _, start, _, _ in operations),
        max(start + duration for _, _, start, duration, _ in operations),
    )
    by_class, names, scale = defaultdict[str, float](float), defaultdict[str, float](float), 1e-9 / steps / devices
    for _, name, _, duration, category in operations:
        kind = operation_class(name, category, classes)
        if kind != LOOP:
            by_class[kind] += duration * scale
            names[name] += duration * scale
    return Trace(
        path=str(newest.parent),
        steps=steps,
        step_seconds=(end_ns - start_ns) * 1e-9 / steps,
        by_class={kind: by_class[kind] for kind in CLASSES},
        longest=dict(sorted(names.items(), key=lambda item: -item[1])[:5]),
    )


def _annotated(data: Any) -> Iterator[dict[str, Any]]:
    """Statistics of the training loop's "train" annotations, one per call of the step."""
    for plane in data.planes:
        if plane.name.startswith("/host:"):
            for line in plane.lines:
                for event in line.events:
                    if event.name == "train":
                        stats = dict(event.stats)
                        if "step_num" in stats:
                            yield stats


def step_operations(data: Any) -> Iterator[tuple[str, str, float, float, str]]:
    """(device, instruction, start, nanoseconds, category) of each operation of the training step.

    A TPU has one plane per chip, with a line of operations (named by their HLO text, with a category) and a line of
    programs. GPU kernels and CPU threads record the instruction and the program that they execute.
    """
    for plane in data.planes:
        tpu = plane.name.startswith("/device:TPU")
        spans = _spans(plane) if tpu else None
        for line in plane.lines:
            if tpu and line.name != "XLA Ops":
                continue
            for event in line.events:
                stats = dict(event.stats)
                name = stats.get("hlo_op") or (event.name if tpu else None)
                if name is None or not (_within(event, spans) if tpu else STEP.match(str(stats.get("hlo_module", "")))):
                    continue
                device = plane.name if plane.name.startswith("/device:") else str(stats.get("device_ordinal", 0))
                match = re.match(r"%?([\w.\-]+)", str(name))
                yield (
                    device,
                    match[1] if match else str(name),
                    event.start_ns,
                    event.duration_ns,
                    str(stats.get("hlo_category", "")),
                )


def _spans(plane: Any) -> list[tuple[float, float]] | None:
    """(start, end) of each execution of the training step on a TPU; None if the trace has no line of programs."""
    lines = [line for line in plane.lines if line.name == "XLA Modules"]
    steps = (event for line in lines for event in line.events if STEP.match(event.name))
    return [(event.start_ns, event.start_ns + event.duration_ns) for event in steps] if lines else None


def _within(event: Any, spans: list[tuple[float, float]] | None) -> bool:
    """Whether the middle of an event is in a span. Times since 1970 are rounded to 256 ns, so ends may be off."""
    middle = event.start_ns + event.duration_ns / 2
    return spans is None or any(start <= middle <= end for start, end in spans)


def operation_class(name: str, category: str, classes: Mapping[str, str]) -> str:
    """Class of an operation: from `classes` if it has the name, else from the name and the profiler's category."""
    if name in classes:
        return classes[name]
    text = f"{category} {name}"
    if name.startswith(("while", "conditional", "call")):
        return LOOP
    return COLLECTIVE if any(kind in text for kind in KINDS) else MATMUL if PRODUCT.search(text) else OTHER
