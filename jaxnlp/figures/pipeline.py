"""A pipeline schedule as a timeline: one row per stage, one column per time slot."""

from collections.abc import Sequence
from typing import Any

DPI = 100
FORWARD = ("#7ea6d9", "#a9c9ec", "#cfe2f7")  # a shade for each virtual stage, repeated if there are more
BACKWARD = ("#8fbf7f", "#b3d8a6", "#d6ecce")
IDLE = "#f2f2f2"
SIDE, WIDEST = 0.3, 60.0  # inches: side of a cell, width of the figure

Cell = tuple[int, bool, int]  # microbatch, whether forward, virtual stage


def draw_schedule(table: Sequence[Sequence[Cell | None]], title: str) -> Any:
    """A matplotlib figure of what each stage runs in each slot. Cells show the microbatch's number, from 1.

    Args:
        table: for each slot, one cell per stage; None if the stage is idle.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    slots, stages = len(table), len(table[0])
    side = min(SIDE, WIDEST / slots)
    figure = Figure(figsize=(max(side * slots + 1.3, 6.0), SIDE * stages + 1.3), dpi=DPI)
    width, height = figure.get_size_inches()
    axis = figure.add_axes((1.0 / width, 0.6 / height, side * slots / width, SIDE * stages / height))
    virtual_stages = 1 + max((cell[2] for slot in table for cell in slot if cell is not None), default=0)
    for t, slot in enumerate(table):
        for stage, cell in enumerate(slot):
            axis.add_patch(Rectangle((t, stage), 1, 1, facecolor=_colour(cell), edgecolor="white", lw=0.8))
            if cell is not None and side > 0.14:
                size = 8 if cell[0] < 99 else 6
                axis.text(t + 0.5, stage + 0.52, str(cell[0] + 1), ha="center", va="center", fontsize=size)
    axis.set(xlim=(0, slots), ylim=(stages, 0), xlabel="time")
    axis.set_yticks([s + 0.5 for s in range(stages)], [f"stage {s}" for s in range(stages)], fontsize=9)
    axis.set_xticks([])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    figure.suptitle(title, fontsize=11, weight="bold", x=0.1 / width, y=1 - 0.15 / height, ha="left", va="top")
    label = lambda i: f", virtual stage {i + 1}" if virtual_stages > 1 else ""
    colours = {f"forward{label(i)}": _colour((0, True, i)) for i in range(virtual_stages)}
    colours |= {f"backward{label(i)}": _colour((0, False, i)) for i in range(virtual_stages)} | {"idle": IDLE}
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="lower right", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def _colour(cell: Cell | None) -> str:
    if cell is None:
        return IDLE
    shades = FORWARD if cell[1] else BACKWARD
    return shades[cell[2] % len(shades)]
