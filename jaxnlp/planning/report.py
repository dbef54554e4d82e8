"""Formats plans as text, and compares a run with its plan."""

from collections.abc import Sequence

from jaxnlp.figures.parallelism import amount
from jaxnlp.planning.hlo import COLLECTIVE, MATMUL, OTHER
from jaxnlp.planning.measured import Measured, Trace
from jaxnlp.planning.step_plan import StepPlan
from jaxnlp.planning.step_time import COMPUTE, MEMORY


def format_plan(plan: StepPlan) -> str:
    """A plan as tables of memory, collectives and time. If it does not fit: memory, the problem and its remedies."""
    lines = [*_head(plan), "", *_memory(plan)]
    if not plan.fits:
        lines += ["", str(plan.problem)]
        lines += ["config changes that would help:"] if plan.remedies else []
        return "\n".join([*lines, *(f"  {remedy}" for remedy in plan.remedies)])
    return "\n".join([*lines, "", *_traffic(plan), "", *_time(plan)])


def format_ranking(plans: Sequence[StepPlan]) -> str:
    """A table of plans that fit, in the given order."""
    rows = [("", "tables", "memory", "step at least", "bound by", "communication", "MFU at most")]
    for place, plan in enumerate(plans, 1):
        assert plan.compiled is not None
        step = "?" if plan.step_seconds is None else f"{plan.step_seconds * 1e3:,.1f} ms"
        mfu = "?" if plan.mfu_ceiling is None else f"{plan.mfu_ceiling:.0%}"
        links = sum(seconds for name, seconds in plan.seconds.items() if name not in (COMPUTE, MEMORY))
        communication = "?" if any(row.seconds is None for row in plan.traffic) else f"{links * 1e3:,.1f} ms"
        rows.append(
            (str(place), plan.name, amount(plan.compiled["peak"]), step, plan.bottleneck or "?", communication, mfu)
        )
    return "\n".join(align_columns(rows))


def format_comparison(run: Measured, plan: StepPlan) -> str:
    """A table of a run's measured speed beside the bounds of its plan, and one of its trace by class of operation."""
    or_unknown = lambda value, text: "unknown" if value is None else text(value)
    ms, rate = (lambda s: f"{s * 1e3:,.2f} ms"), (lambda x: f"{x:,.0f}")
    flops = lambda x: f"{x / 1e12:,.3g} TFLOP/s" if x >= 1e11 else f"{x / 1e9:,.3g} GFLOP/s"
    best = plan.step_seconds
    tokens, device_flops = (None, None) if best is None else (plan.tokens / best, plan.flops / plan.num_devices / best)
    rows = [
        (f"median of {run.rows} rows of the log", "measured", "bound, by plan"),
        ("  step time", ms(run.step_seconds), or_unknown(best, ms)),
        ("  tokens per second", rate(run.tokens_per_second), or_unknown(tokens, rate)),
        ("  FLOP/s of each device", flops(run.flops), or_unknown(device_flops, flops)),
        ("  MFU", or_unknown(run.mfu, "{:.1%}".format), or_unknown(plan.mfu_ceiling, "{:.1%}".format)),
    ]
    lines = align_columns(rows)
    if best is not None:
        lines.append(f"the step takes {run.step_seconds / best:.2f} times its lower bound, set by {plan.bottleneck}")
    return "\n".join([*lines, "", *_traced(run.trace, plan)])


def _traced(trace: Trace | None, plan: StepPlan) -> list[str]:
    if trace is None:
        return ["no trace: train with --profile_steps=10:15 to see the time of each class of operation"]
    links = sum(seconds for name, seconds in plan.seconds.items() if name not in (COMPUTE, MEMORY))
    links_known = plan.traffic and all(row.seconds is not None for row in plan.traffic)
    bounds = {MATMUL: plan.seconds.get(COMPUTE), COLLECTIVE: links if links_known or not plan.traffic else None}
    bounds[OTHER] = plan.seconds.get(MEMORY)
    total = sum(trace.by_class.values())
    label = f"trace of {trace.steps} steps, {trace.step_seconds * 1e3:,.2f} ms each"
    rows = [(label, "device time", "share", "at least, by plan")]
    for kind, seconds in trace.by_class.items():
        bound = bounds[kind]
        planned = "unknown" if bound is None else f"{bound * 1e3:,.2f} ms"
        rows.append((f"  {kind}", f"{seconds * 1e3:,.2f} ms", f"{seconds / total:.1%}", planned))
    lines = align_columns(rows)
    lines.append("bounds from the plan: compute for matrix products, all memory traffic for other operations")
    longest = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in trace.longest.items())
    return [*lines, f"longest: {longest}"]


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns rows of cells into lines. Columns of numbers are right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(row[i][:1].isdigit() or row[i] in ("", "?", "-") for row in rows[1:]) for i in range(len(widths))]
    lines = []
    for row in rows:
        cells = zip(row, widths, right, strict=True)
        lines.append("  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in cells).rstrip())
    return lines


def _head(plan: StepPlan) -> list[str]:
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items()) or "one device"
    micro = f" in {plan.accum_steps} microbatches" if plan.accum_steps > 1 else ""
    if plan.schedule is not None:
        micro += f" by {plan.schedule}, whose bubble is {plan.bubble:.1%}"
    return [
        f"{plan.parameters:,} parameters on {plan.num_devices} x {plan.device}, mesh {mesh}",
        f"{plan.tokens:,} tokens per step{micro}, {plan.flops:.3e} FLOPs",
    ]


def _memory(plan: StepPlan) -> list[str]:
    count = plan.parameters
    rows = [("memory on each device", "bytes", "per parameter")]
    rows += [(f"  {part}", amount(size), f"{size / count:.3f}") for part, size in plan.memory.items()]
    host_rows = [(f"  host memory: {part}", size) for part, size in plan.host_memory.items()]
    rows += [(name, amount(size), f"{size / count:.3f}") for name, size in host_rows]
    if plan.host_bytes and plan.host_memory_limit is not None:
        rows.append(("  host memory available", amount(plan.host_memory_limit), "-"))
    states = sum(size for part, size in plan.memory.items() if part != "activations")
    bytes_each = "+".join(f"{plan.zero_formula[f'{name} bytes']:g}" for name in ("weight", "gradient", "optimizer"))
    formula = f"  ZeRO's formula, stage {plan.zero_formula['stage']:g}, {bytes_each}"
    rows.append(("  states (all except activations)", amount(states), f"{states / count:.3f}"))
    rows.append((formula, amount(plan.zero_formula["bytes"]), f"{plan.zero_formula['bytes'] / count:.3f}"))
    if plan.compiled is not None:
        rows += [
            (f"  compiled: {part}", amount(size), f"{size / count:.3f}")
            for part, size in plan.compiled.items()
            if size or part == "peak"
        ]
    if plan.device_memory_limit is not None:
        rows.append(("  available", amount(plan.device_memory_limit), "-"))
    lines = align_columns(rows)
    if plan.compiled is not None and plan.device_memory_limit is not None:
        lines.append(f"  the peak takes {plan.compiled['peak'] / plan.device_memory_limit:.0%} of it")
    return lines


def _traffic(plan: StepPlan) -> list[str]:
    if not plan.traffic:
        return ["no collectives"]
    rows = [("collective", "axes", "over", "times", "sent by each device", "at least")]
    for row in plan.traffic:
        seconds = "?" if row.seconds is None else f"{row.seconds * 1e3:,.2f} ms"
        rows.append((row.kind, "+".join(row.axes) or "-", row.network, f"{row.count:,}", amount(row.bytes), seconds))
    return [*align_columns(rows), *plan.notes]


def _time(plan: StepPlan) -> list[str]:
    if plan.step_seconds is None:
        return [f"time: unknown ({plan.peak_source})"]
    rows = [("lower bounds of the step time", "", "")]
    for name, seconds in sorted(plan.seconds.items(), key=lambda item: -item[1]):
        rows.append((f"  {name}", f"{seconds * 1e3:,.2f} ms", "the longest" if name == plan.bottleneck else ""))
    lines = [*align_columns(rows), f"peak: {plan.peak_source}"]
    if plan.executed_flops:
        idle = f" and the pipeline's idle ticks ({plan.bubble:.1%})" if plan.bubble else ""
        ratio = f"compute is {plan.executed_flops / plan.flops:.2f}x the model's FLOPs, as traced"
        lines.append(f"{ratio}, including recomputation{idle}")
    if plan.mfu_ceiling is not None:
        rate = plan.tokens / plan.step_seconds
        lines.append(f"MFU at most {plan.mfu_ceiling:.0%}: {rate:,.0f} tokens per second, if all else overlaps")
    return lines
