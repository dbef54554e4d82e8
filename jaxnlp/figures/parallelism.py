"""Figures of parallelism from plain numbers: memory and traffic of each device, and how matrices are sharded."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

DPI = 100
# In stacking order.
COLOURS = {
    "parameters": "#7ea6d9",
    "gradients": "#f0a35e",
    "optimizer state": "#8fbf7f",
    "outputs": "#c9a6d4",
    "outputs' gradients": "#a678b8",
    "batch": "#b0b0b0",
}
KINDS = list(COLOURS)

Moved = Mapping[str, Sequence[tuple[int, int]]]  # kind of data -> (sent, received) bytes of each device


def amount(count: float) -> str:
    """Bytes with a decimal unit (1 GB = 1e9 bytes), as "31.4 GB" or "482 kB"."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            number = count / size
            return f"{number:.3g} {unit}" if number < 100 else f"{number:,.0f} {unit}"
    return f"{count:,.0f} B"


def unit_of(count: float) -> tuple[str, float]:
    """(unit, its size in bytes) for numbers up to `count` bytes."""
    return next(((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6)) if count >= size), ("kB", 1e3))


def draw_traffic(ways: Mapping[str, Moved], param_bytes: int) -> Any:
    """Bytes that each device sends (up) and receives (down) in a step; one panel per entry of `ways`, in one scale.

    Args:
        ways: {title: bytes moved by kind}. param_bytes: bytes of all parameters, the unit of the scale on the right.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(ways) + 1.4, 4.2), dpi=DPI)
    axes = figure.subplots(1, len(ways), sharey=True, squeeze=False)[0]
    totals = [
        sum(moved[i][s] for moved in way.values()) for way in ways.values() for i in range(_count(way)) for s in (0, 1)
    ]
    unit, size = unit_of(max(totals))
    handles: dict[str, Any] = {}
    for axis, (title, way) in zip(axes, ways.items(), strict=True):
        for side, sign in ((0, 1), (1, -1)):
            base = [0.0] * _count(way)
            for kind, moved in sorted(way.items(), key=lambda item: KINDS.index(item[0])):
                heights = [sign * pair[side] / size for pair in moved]
                bars = axis.bar(range(len(heights)), heights, bottom=base, color=COLOURS[kind], width=0.8)
                handles.setdefault(kind, bars)
                base = [b + h for b, h in zip(base, heights, strict=True)]
        axis.axhline(0, color="0.2", lw=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(_count(way)))
        axis.set_xlabel("device", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.9", lw=0.6)
        axis.set_axisbelow(True)
    limit = 1.12 * max(totals) / size
    axes[0].set_ylim(-limit, limit)
    axes[0].yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes[0].set_ylabel(f"{unit} received        {unit} sent", fontsize=9)
    scale = axes[-1].secondary_yaxis(
        "right", functions=(lambda y: y * size / param_bytes, lambda y: y * param_bytes / size)
    )
    scale.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    scale.set_ylabel("times the parameters", fontsize=9)
    scale.tick_params(labelsize=8)
    figure.suptitle("Bytes of each device in a training step", x=0.02, ha="left", fontsize=11, weight="bold")
    figure.legend(handles.values(), handles, loc="lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    return figure


def _count(way: Moved) -> int:
    return len(next(iter(way.values())))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device under one rule table.

    parts: bytes by kind, in stacking order. formula: bytes according to the theoretical formula.
    peak: peak memory of the device, including everything that `parts` leaves out, if known.
    """

    name: str
    parts: Mapping[str, float]
    formula: float | None = None
    peak: float | None = None

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def draw_memory(panels: Mapping[str, Sequence[Memory]], title: str) -> Any:
    """Memory bars, one per rule table; one panel per model, each in its own scale.

    A black tick marks the formula's value, and a hatched bar the part of the peak that is not in `parts`.
    """
    from matplotlib.figure import Figure

    rows = max(len(bars) for bars in panels.values())
    figure = Figure(figsize=(5.0 * len(panels), 1.3 + 0.45 * rows), dpi=DPI)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axis, (name, bars) in zip(axes, panels.items(), strict=True):
        largest = max(bar.peak or bar.total for bar in bars)
        unit, size = unit_of(largest)
        for y, bar in enumerate(bars):
            left = 0.0
            for kind, count in bar.parts.items():
                patches = axis.barh(y, count / size, left=left, height=0.62, color=COLOURS[kind])
                handles.setdefault(kind, patches)
                left += count / size
            label = "" if bar.formula is None else f"  (formula {amount(bar.formula)})"
            if bar.peak is not None:
                excess = max(0.0, bar.peak - bar.total) / size
                patches = axis.barh(y, excess, left=left, height=0.62, color="white", ec="0.55", hatch="////", lw=0.6)
                handles.setdefault("peak, compiled", patches)
                left += excess
                label += f"\npeak {amount(bar.peak)}"
            axis.text(left + largest / size * 0.015, y, amount(bar.total) + label, va="center", fontsize=8)
            if bar.formula is not None:
                axis.plot([bar.formula / size] * 2, [y - 0.38, y + 0.38], color="black", lw=1.2)
        axis.set_yticks(range(len(bars)), [bar.name for bar in bars])
        axis.set_xlim(0, 1.45 * largest / size)
        axis.set_ylim(len(bars) - 0.4, -0.6)
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_xlabel(f"{unit} on each device", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0, labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, weight="bold")
    figure.legend(handles.values(), handles, loc="lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    return figure


@dataclasses.dataclass(frozen=True)
class Piece:
    """A matrix or an activation of a layer that is split over devices.

    name, note: written above and below it. split: "columns" or "rows" are sharded over devices; None: replicated.
    after: drawn between it and the next piece: an operator sign, or the name of a collective.
    """

    name: str
    note: str = ""
    split: str | None = None
    after: str = ""


DEVICE_COLOURS = ("#a9c8e8", "#f6c493", "#b5d8a9", "#e3b5d3", "#f3e19b", "#b9e0de", "#d3c6e6", "#e8b9ad")
REPLICATED = "#ededed"
SIDE, BETWEEN, ROW, MARGIN = 1.0, 0.34, 1.95, 0.35  # inches
WIDE = 1.5  # space for a word between two pieces


def draw_split(layers: Mapping[str, Sequence[Piece]], ways: int, title: str) -> Any:
    """How layers are split over `ways` devices: one row per layer, one colour per device, grey if replicated."""
    from matplotlib.figure import Figure

    width = max(sum(SIDE + _room(piece) for piece in row) for row in layers.values()) + 2 * MARGIN
    height = 0.75 + ROW * len(layers)
    figure = Figure(figsize=(width, height), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    axis.text(0.15, height - 0.22, title, fontsize=11, weight="bold", va="center")
    for number, (name, row) in enumerate(layers.items()):
        top = height - 0.95 - ROW * number
        axis.text(0.15, top + 0.38, name, fontsize=9.5, weight="bold", color="0.25", va="center")
        x = MARGIN
        for piece in row:
            _paint(axis, piece, x, top - SIDE, ways)
            x += SIDE + _room(piece)
    x = 0.15
    for device in [*range(ways), None]:
        colour = REPLICATED if device is None else DEVICE_COLOURS[device % len(DEVICE_COLOURS)]
        axis.add_patch(_rectangle(x, 0.12, 0.16, 0.16, colour))
        label = "replicated" if device is None else f"device {device}"
        axis.text(x + 0.22, 0.2, label, fontsize=8, va="center")
        x += 0.95
    return figure


def _room(piece: Piece) -> float:
    return WIDE if len(piece.after) > 1 else BETWEEN if piece.after else 0.0


def _paint(axis: Any, piece: Piece, x: float, y: float, ways: int) -> None:
    """Draws a piece with its lower left corner at (x, y), and its `after`."""
    if piece.split is None:
        axis.add_patch(_rectangle(x, y, SIDE, SIDE, REPLICATED))
    for i in range(ways if piece.split else 0):
        colour, part = DEVICE_COLOURS[i % len(DEVICE_COLOURS)], SIDE / ways
        if piece.split == "columns":
            axis.add_patch(_rectangle(x + i * part, y, part, SIDE, colour))
        else:
            axis.add_patch(_rectangle(x, y + SIDE - (i + 1) * part, SIDE, part, colour))
    middle = y + SIDE / 2
    axis.text(x + SIDE / 2, y + SIDE + 0.05, piece.name, fontsize=8.5, ha="center", va="bottom")
    axis.text(x + SIDE / 2, y - 0.06, piece.note, fontsize=7, color="0.3", ha="center", va="top", linespacing=1.3)
    sign = x + SIDE + _room(piece) / 2
    if len(piece.after) > 1:
        left = x + SIDE + 0.1
        arrow = {"arrowstyle": "-|>", "lw": 1.0, "color": "0.25"}
        axis.annotate("", (left + WIDE - 0.2, middle), (left, middle), arrowprops=arrow)
        axis.text(sign, middle + 0.07, piece.after, fontsize=7.5, ha="center", va="bottom", linespacing=1.25)
    else:
        axis.text(sign, middle, piece.after, fontsize=12, ha="center", va="center")


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, fc=colour, ec="0.35", lw=0.6)
