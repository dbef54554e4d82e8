"""Figures of plans: memory per device against its limit, and the minimum time of each resource."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxnlp.figures.parallelism import COLOURS, DPI, amount, unit_of

PARTS = {**COLOURS, "activations": "#d98880"}
TIMES = ("#5b7fa6", "#8fbf7f", "#f0a35e", "#a678b8", "#c9a6d4", "#b0b0b0", "#d98880", "#7f6a4f", "#2f4858")


def draw_plans(plans: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Two panels with one row per plan: memory on the left, times on the right.

    The left panel stacks the bytes of each part; a tick marks the compiler's peak and a line the device's memory. The
    right panel has a bar for the minimum time of each resource.

    Args:
        plans: `Plan.to_dict()` of each.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.9 + 0.62 * len(plans)), dpi=DPI)
    left, right = figure.subplots(1, 2, sharey=True)
    legends = [_memory(left, plans), _times(right, plans)]
    left.set_yticks(range(len(plans)), [plan["name"] for plan in plans])
    left.set_ylim(len(plans) - 0.5, -0.5)
    for axis in (left, right):
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, weight="bold")
    for handles, x in zip(legends, (0.27, 0.77), strict=True):
        if handles:
            at = {"loc": "lower center", "bbox_to_anchor": (x, 0)}
            figure.legend(handles.values(), handles, ncols=3, fontsize=8, frameon=False, **at)
    figure.tight_layout(rect=(0, 0.55 / figure.get_figheight(), 1, 1))
    return figure


def draw_measured(measured: Mapping[str, Any], plan: Mapping[str, Any], title: str) -> Any:
    """The measured step time of a run and the minimum time of each resource, as bars.

    If the run was traced, the traced step and its time by class of operation are shown too.

    Args:
        measured: `Measured.to_dict()`. plan: `Plan.to_dict()`.
    """
    from matplotlib.figure import Figure

    trace = measured["trace"]
    bars = [("step, measured", measured["step_seconds"], "black")]
    if trace is not None:
        colours = ("#5b7fa6", "#8fbf7f", "#b0b0b0")
        pairs = zip(trace["by_class"].items(), colours, strict=True)
        bars.append(("step, while traced", trace["step_seconds"], "0.45"))
        bars += [(f"{kind}, in the trace", seconds, colour) for (kind, seconds), colour in pairs]
    bars += [(f"{name}, lower bound", seconds, "#f0a35e") for name, seconds in plan["seconds"].items()]
    longest = max(seconds for _, seconds, _ in bars)
    unit, size = ("s", 1.0) if longest >= 1 else ("ms", 1e-3)
    figure = Figure(figsize=(8.5, 1.3 + 0.38 * len(bars)), dpi=DPI)
    axis = figure.subplots()
    for y, (_, seconds, colour) in enumerate(bars):
        axis.barh(y, seconds / size, height=0.6, color=colour)
        axis.text((seconds + 0.01 * longest) / size, y, f"{seconds / size:,.3g}", va="center", fontsize=8)
    axis.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * longest / size)
    axis.set_xlabel(f"{unit} per step and device", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    mfu, ceiling = measured["mfu"], plan["mfu_ceiling"]
    share = "" if mfu is None else f", MFU {mfu:.1%}" + ("" if ceiling is None else f" of at most {ceiling:.1%}")
    axis.set_title(f"{title}: {measured['tokens_per_second']:,.0f} tokens per second{share}", fontsize=10, loc="left")
    figure.tight_layout()
    return figure


def _memory(axis: Any, plans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    bytes_of = lambda plan: (sum(plan["memory"].values()), (plan["compiled"] or {}).get("peak", 0))
    largest = max(max(*bytes_of(plan), sum(plan["host_memory"].values())) for plan in plans)
    unit, size = unit_of(largest)
    handles: dict[str, Any] = {}
    for y, plan in enumerate(plans):
        start = 0.0
        for part, count in plan["memory"].items():
            bar = axis.barh(y, count / size, left=start, height=0.55, color=PARTS[part])
            handles.setdefault(part, bar)
            start += count / size
        for part, count in plan["host_memory"].items():
            bar = axis.barh(y + 0.38, count / size, height=0.16, color=PARTS[part], hatch="//////", edgecolor="white")
            handles.setdefault(f"{part} (host memory)", bar)
        peak = (plan["compiled"] or {}).get("peak")
        limit_text = f" of {amount(plan['device_memory_limit'])}" if plan["device_memory_limit"] else ""
        label = f"{amount(peak)}{limit_text}, compiled" if peak and plan["fits"] else "does not fit"
        if peak:
            (tick,) = axis.plot([peak / size] * 2, [y - 0.36, y + 0.36], color="black", lw=1.6)
            handles.setdefault("peak, compiled", tick)
        axis.text(max(start, (peak or 0) / size) + largest / size * 0.015, y, label, va="center", fontsize=8)
    limits = {plan["device_memory_limit"] for plan in plans if plan["device_memory_limit"]}
    for limit in limits:
        if limit < 3 * largest:
            handles["device memory"] = axis.axvline(limit / size, color="#b03030", lw=1.2, ls="--")
    axis.set_xlim(0, 1.5 * max([largest, *(n for n in limits if n < 3 * largest)]) / size)
    axis.set_xlabel(f"{unit} on each device", fontsize=9)
    return handles


def _times(axis: Any, plans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for plan in plans for name in plan["seconds"]))
    longest = max((s for plan in plans for s in plan["seconds"].values()), default=0.0)
    unit, size = ("s", 1.0) if longest >= 1 else ("ms", 1e-3)
    handles: dict[str, Any] = {}
    for y, plan in enumerate(plans):
        height = 0.7 / max(1, len(plan["seconds"]))
        for i, (name, seconds) in enumerate(plan["seconds"].items()):
            place = y - 0.35 + (i + 0.5) * height
            colour = TIMES[names.index(name) % len(TIMES)]
            handles.setdefault(name, axis.barh(place, seconds / size, height=0.9 * height, color=colour))
        if plan["step_seconds"] is None:
            axis.text(0, y, " unknown" if plan["fits"] else " does not fit", va="center", fontsize=8)
    axis.set_xlabel(f"{unit} per step, each resource alone at its peak", fontsize=9)
    axis.tick_params(axis="y", length=0)
    return handles
