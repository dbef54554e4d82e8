"""Attention weights as heatmaps: one panel per head, one row of panels per layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.figures.fonts import legible
from jaxnlp.inference.attention_maps import AttentionMap

DPI = 100
MAX_PIXELS = 12_000  # limit of width and height; common viewers open no larger image
CHARACTER, LINE = 0.06, 0.13  # size of a label's letter in 7 point, in inches
GAP, HEADING = 0.08, 0.42  # inches
LEGEND = "Each row is a query and each column a key; masked pairs are grey."


def draw_attention(maps: Sequence[AttentionMap], title: str) -> Any:
    """A matplotlib figure of the maps, one below the other, with one colour bar.

    Weights of exactly 0, i.e. masked positions, are grey.

    Raises:
        UserError: the figure would have more than `MAX_PIXELS` on a side.
    """
    from matplotlib import cm, colormaps, colors
    from matplotlib.figure import Figure

    parts = [_Part(m) for m in maps]
    width = max(part.width for part in parts) + 1.0
    height = sum(part.height for part in parts) + 0.65
    if max(width, height) * DPI > MAX_PIXELS:
        sizes = "; ".join(
            f"{m.name}: {len(m.layers)} layers, {len(m.heads)} heads, {len(m.queries)} x {len(m.keys)}" for m in maps
        )
        raise UserError(
            f"--text: the figure would have {width * DPI:,.0f} x {height * DPI:,.0f} pixels, more than {MAX_PIXELS:,} "
            f"on a side ({sizes} tokens); shorten the text, or select some with --layers=0,1 and --heads=0,1"
        )
    figure = Figure(figsize=(width, height), dpi=DPI)
    # Square root of the weight, so that a weight of 0.1 is still visible beside one of 1.
    scale = cm.ScalarMappable(colors.PowerNorm(0.5, 0.0, 1.0), colormaps["Blues"].with_extremes(bad="0.9"))
    top = height - 0.55
    figure.text(0.12 / width, (height - 0.2) / height, title, fontsize=11, va="center")
    figure.text(0.12 / width, (height - 0.4) / height, LEGEND, fontsize=8, color="0.35", va="center")
    for part in parts:
        part.draw(figure, top, scale)
        top -= part.height
    bar_height = min(3.0, height - 1.2)
    axis = figure.add_axes((1 - 0.75 / width, (height - 0.75 - bar_height) / height, 0.14 / width, bar_height / height))
    figure.colorbar(scale, cax=axis, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    axis.tick_params(labelsize=7)
    axis.set_title("weight", fontsize=8)
    return figure


class _Part:
    """The panels of one map, and their layout in inches."""

    def __init__(self, attention: AttentionMap):
        self.map = attention
        self.queries, self.query_fonts = legible(attention.queries)
        self.keys, self.key_fonts = legible(attention.keys)
        self.left = 0.55 + CHARACTER * max(map(len, self.queries))
        self.foot = 0.25 + CHARACTER * max(map(len, self.keys))
        self.panel = (max(1.1, LINE * len(self.keys)), max(1.1, LINE * len(self.queries)))
        self.width = self.left + len(attention.heads) * (self.panel[0] + GAP)
        self.height = HEADING + len(attention.layers) * (self.panel[1] + GAP) + self.foot

    def draw(self, figure: Any, top: float, scale: Any) -> None:
        width, height = figure.get_size_inches()
        write = lambda x, y, text, **how: figure.text(x / width, y / height, text, va="center", **how)
        write(0.12, top - 0.15, self.map.name, fontsize=9, weight="bold")
        for i, layer in enumerate(self.map.layers):
            y = top - HEADING - (i + 1) * (self.panel[1] + GAP) + GAP
            write(0.22, y + self.panel[1] / 2, _title("layer", layer), rotation=90, fontsize=8, ha="center")
            for j, head in enumerate(self.map.heads):
                x = self.left + j * (self.panel[0] + GAP)
                axis = figure.add_axes((x / width, y / height, self.panel[0] / width, self.panel[1] / height))
                weights_TS = self.map.weights_LHTS[i, j]
                visible_TS = np.ma.masked_where(weights_TS == 0, weights_TS)
                axis.imshow(visible_TS, cmap=scale.cmap, norm=scale.norm, aspect="auto", interpolation="nearest")
                axis.set(label=f"{self.map.name}, layer {layer}, head {head}", xticks=[], yticks=[])
                axis.tick_params(length=1.5, labelsize=7, pad=2)
                axis.spines[:].set_linewidth(0.4)
                if i == 0:
                    axis.set_title(_title("head", head), fontsize=8, pad=3)
                if i == len(self.map.layers) - 1:
                    axis.set_xticks(range(len(self.keys)), self.keys, rotation=90, family=self.key_fonts)
                if j == 0:
                    axis.set_yticks(range(len(self.queries)), self.queries, family=self.query_fonts)


def _title(kind: str, name: int | str) -> str:
    return f"{kind} {name}" if isinstance(name, int) else name
