"""Draws a model's architecture from its parameter table as nested boxes; repeated blocks are drawn once."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Table = Sequence[tuple[tuple[str, ...], tuple[int, ...], tuple[str | None, ...]]]

TIMES = "\N{MULTIPLICATION SIGN}"
NUMBERED = re.compile(r"^(.*\D)(\d+)$")
# Colour by substring of a module's name; the first match counts. Colours as in figure 1 of Vaswani et al. 2017.
COLOURS = {
    "norm": "#f6f4c9",
    "attention": "#fde3c0",
    "mlp": "#cfe8f3",
    "embed": "#fadfe2",
    "position": "#fadfe2",
    "types": "#fadfe2",
    "head": "#dfe3f5",
    "masked_lm": "#dfe3f5",
    "next_sentence": "#dfe3f5",
    "pooler": "#dfe3f5",
}
PLAIN = ("#f2f2f2", "#ffffff")  # other boxes: at the top level, and nested


@dataclasses.dataclass
class Parameter:
    """A parameter array. sizes: (size, logical axis) of each dimension."""

    name: str
    sizes: tuple[tuple[int, str | None], ...]

    @property
    def count(self) -> int:
        return math.prod(size for size, _ in self.sizes)

    @property
    def shape(self) -> str:
        return (
            f" {TIMES} ".join(f"{size:,} {axis}" if axis else f"{size:,}" for size, axis in self.sizes) or "one number"
        )


@dataclasses.dataclass
class Box:
    """A module. parameters: its own. boxes: its submodules. times: number of identical modules that it represents."""

    name: str
    parameters: list[Parameter]
    boxes: list["Box"]
    times: int = 1

    @property
    def each(self) -> int:
        """Number of parameters in one of the identical modules, submodules included."""
        return sum(p.count for p in self.parameters) + sum(box.count for box in self.boxes)

    @property
    def count(self) -> int:
        return self.times * self.each

    @property
    def repeats(self) -> bool:
        """Whether it contains a repeated module."""
        return any(box.times > 1 or box.repeats for box in self.boxes)


def tree(name: str, table: Table) -> Box:
    """The module tree of a parameter table (`sharding.functional.parameter_table`).

    Identical neighbours with consecutive numbers, and scanned layers, are folded into one box.
    """
    root = Box(name, [], [])
    for path, shape, axes in table:
        box = root
        for part in path[:-1]:
            submodule = next((b for b in box.boxes if b.name == part), None)
            if submodule is None:
                submodule = Box(part, [], [])
                box.boxes.append(submodule)
            box = submodule
        box.parameters.append(Parameter(path[-1], tuple(zip(shape, axes, strict=True))))
    return _folded(root)


def _folded(box: Box) -> Box:
    boxes: list[Box] = []
    for submodule in (_folded(_unscanned(b)) for b in box.boxes):  # the outermost scan first
        previous = boxes[-1] if boxes else None
        if previous is not None and _follows(previous, submodule):
            first_name = previous.name.split(" … ")[0]
            boxes[-1] = dataclasses.replace(previous, name=f"{first_name} … {submodule.name}", times=previous.times + 1)
        else:
            boxes.append(submodule)
    return dataclasses.replace(box, boxes=boxes)


def _follows(previous: Box, box: Box) -> bool:
    """Whether `box` is identical to `previous` except for the next number in its name."""
    old, new = NUMBERED.match(previous.name.split(" … ")[-1]), NUMBERED.match(box.name)
    if not (old and new and old[1] == new[1] and int(new[2]) == int(old[2]) + 1 and box.times == 1):
        return False
    return (previous.parameters, previous.boxes) == (box.parameters, box.boxes)


def _unscanned(box: Box) -> Box:
    """A box of scanned layers, whose parameters all have the leading axis "layers", as one repeated layer."""
    parameters = list(_all_parameters(box))
    layers = {p.sizes[0] if p.sizes else (0, None) for p in parameters}
    if not box.boxes or len(layers) != 1 or next(iter(layers))[1] != "layers":
        return box
    return dataclasses.replace(_without_first(box), times=next(iter(layers))[0])


def _all_parameters(box: Box) -> Any:
    yield from box.parameters
    for submodule in box.boxes:
        yield from _all_parameters(submodule)


def _without_first(box: Box) -> Box:
    parameters = [Parameter(p.name, p.sizes[1:]) for p in box.parameters]
    return dataclasses.replace(box, parameters=parameters, boxes=[_without_first(b) for b in box.boxes])


ROW, PAD, GAP, HEADER = 0.17, 0.06, 0.05, 0.25  # inches
LETTER = 0.066  # width of a letter in 8 point, in inches
DPI = 100


def draw_architecture(root: Box, title: str) -> Any:
    """A matplotlib figure of a model: its parts from top to bottom in table order, and the parameter count."""
    from matplotlib.figure import Figure

    rows = _rows(root)
    columns = _Columns(root)
    width = max(sum(columns.width for _ in row) + GAP * (len(row) - 1) for row in rows) + 0.2
    height = 0.75 + sum(max(_height(box) for box in row) + GAP for row in rows)
    figure = Figure(figsize=(width, height), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    axis.text(0.1, height - 0.2, title, fontsize=11, weight="bold", va="center")
    y = height - 0.4
    for row in rows:
        tallest = max(map(_height, row))
        across = (width - 0.2 - GAP * (len(row) - 1)) / len(row)
        for i, box in enumerate(row):
            _Part(axis, 0.1 + i * (across + GAP), across, columns).paint(box, y, tallest)
        y -= tallest + GAP
    axis.text(width - 0.1 - PAD, 0.18, f"total  {root.count:,}", fontsize=10, weight="bold", ha="right", va="center")
    return figure


def _rows(root: Box) -> list[list[Box]]:
    """The parts of a model by row. Consecutive stacks, as an encoder and a decoder, share a row."""
    rows: list[list[Box]] = []
    own_parameters = [Box("", root.parameters, [])] if root.parameters else []
    for box in [*own_parameters, *root.boxes]:
        if rows and box.repeats and box.times == 1 and rows[-1][-1].repeats:
            rows[-1].append(box)
        else:
            rows.append([box])
    return rows


class _Columns:
    """Column positions in inches: names and shapes from a part's left edge, counts from its right edge."""

    def __init__(self, root: Box):
        names, parameters = list(_names(root, 0)), list(_all_parameters(root))
        longest = lambda texts: LETTER * max(map(len, texts), default=0) + 0.15
        self.count = 2 * PAD * (1 + max(depth for _, depth in names))
        self.name = max(LETTER * len(name) + 2 * PAD * (depth + 1) for name, depth in names) + 0.15
        self.shape = self.name + longest([p.name for p in parameters])
        self.width = self.shape + longest([p.shape for p in parameters]) + LETTER * len(f"{root.count:,}") + self.count
        self.width = max(self.width, 5.0)


def _names(box: Box, depth: int) -> Any:
    """(name, depth) of every box, with "" if the name is in a header; depth 0 is a part of the root."""
    for submodule in box.boxes:
        yield ("" if _headed(submodule) else submodule.name), depth
        yield from _names(submodule, depth + 1)


def _headed(box: Box) -> bool:
    return bool(box.boxes) or box.times > 1


def _height(box: Box) -> float:
    content = sum(_height(b) + GAP for b in box.boxes)
    return (HEADER if _headed(box) else 0) + 2 * PAD + ROW * len(box.parameters) + content


def _colour(box: Box, depth: int) -> str:
    return next((colour for word, colour in COLOURS.items() if word in box.name), PLAIN[min(depth, 1)])


@dataclasses.dataclass
class _Part:
    """A part of the model on the page, with its left edge at `x` and `width` in inches."""

    axis: "Axes"
    x: float
    width: float
    columns: _Columns

    def paint(self, box: Box, y: float, height: float, depth: int = 0) -> None:
        """Draws a box and its contents, with the upper edge at y."""
        from matplotlib.patches import FancyBboxPatch

        x, width = self.x + 2 * PAD * depth, self.width - 4 * PAD * depth
        style = {"boxstyle": "round,pad=0,rounding_size=0.05", "fc": _colour(box, depth), "ec": "0.55", "lw": 0.7}
        self.axis.add_patch(FancyBboxPatch((x, y - height), width, height, **style))
        y -= PAD
        if _headed(box):
            repeated = box.times > 1
            self.write(
                x + 2 * PAD, y - HEADER / 2, box.name + (f"   {TIMES} {box.times}" if repeated else ""), weight="bold"
            )
            count = f"{box.each:,} each, {box.count:,} in all" if repeated else f"{box.count:,}"
            self.write(x + width - 2 * PAD, y - HEADER / 2, count, weight="bold", ha="right")
            y -= HEADER
        else:
            self.write(x + 2 * PAD, y - ROW * len(box.parameters) / 2, box.name)
        for parameter in box.parameters:
            middle = y - ROW / 2
            self.write(self.x + self.columns.name, middle, parameter.name, color="0.35")
            self.write(self.x + self.columns.shape, middle, parameter.shape)
            self.write(self.x + self.width - self.columns.count, middle, f"{parameter.count:,}", ha="right")
            y -= ROW
        for submodule in box.boxes:
            self.paint(submodule, y, _height(submodule), depth + 1)
            y -= _height(submodule) + GAP

    def write(self, x: float, y: float, text: str, **how: Any) -> None:
        self.axis.text(x, y, text, fontsize=8, va="center", **how)
