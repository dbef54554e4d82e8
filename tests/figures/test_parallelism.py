"""Parallelism figures draw every number to scale."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from jaxnlp.figures.parallelism import (
    DEVICE_COLOURS,
    REPLICATED,
    Memory,
    Piece,
    amount,
    draw_memory,
    draw_split,
    draw_traffic,
)


def texts(figure) -> list[str]:
    FigureCanvasAgg(figure).draw()
    return [t.get_text() for axis in figure.axes for t in axis.texts]


def test_memory_is_stacked_to_its_total_beside_the_formula():
    bars = [Memory("A", {"parameters": 2e9, "gradients": 3e9}, 6e9), Memory("B", {"parameters": 5e8}, None)]
    figure = draw_memory({"model": bars}, "Memory")
    (axis,) = figure.axes
    widths = [patch.get_width() for patch in axis.patches]
    assert widths == [2.0, 3.0, 0.5] and [patch.get_x() for patch in axis.patches] == [0.0, 2.0, 0.0]
    (tick,) = axis.lines
    assert set(tick.get_xdata()) == {6.0}
    assert texts(figure) == ["5 GB  (formula 6 GB)", "500 MB"]


def test_traffic_goes_up_for_sent_and_down_for_received():
    way = {"gradients": [(1_000_000, 3_000_000), (2_000_000, 0)], "parameters": [(4_000_000, 0), (0, 5_000_000)]}
    figure = draw_traffic({"one": way, "two": {"gradients": [(1, 1), (1, 1)]}}, 2_000_000)
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == [4.0, 0.0, 1.0, 2.0, 0.0, -5.0, -3.0, 0.0]  # parameters are stacked next to the axis
    assert [patch.get_y() for patch in figure.axes[0].patches][2:4] == [4.0, 0.0]


def test_a_split_matrix_has_a_part_of_each_device():
    row = [Piece("x", after="forward: nothing"), Piece("up", "2 x 8", "columns", "="), Piece("down", "8 x 2", "rows")]
    figure = draw_split({"mlp": row}, 4, "split")
    (axis,) = figure.axes
    colours = [to_hex(patch.get_facecolor()) for patch in axis.patches]
    legend = [*DEVICE_COLOURS[:4], REPLICATED]
    assert sorted(colours) == sorted([REPLICATED, *DEVICE_COLOURS[:4], *DEVICE_COLOURS[:4], *legend])
    parts = [patch for patch in axis.patches if to_hex(patch.get_facecolor()) == DEVICE_COLOURS[0]]
    sizes = [(round(p.get_width(), 3), round(p.get_height(), 3)) for p in parts[:2]]
    assert sizes == [(0.25, 1.0), (1.0, 0.25)]
    assert {"x", "up", "down", "2 x 8", "forward: nothing", "device 3", "replicated"} <= set(texts(figure))


@pytest.mark.parametrize(("count", "words"), [(12, "12 B"), (1.5e3, "1.5 kB"), (31.4e9, "31.4 GB"), (120e9, "120 GB")])
def test_amounts_in_words(count, words):
    assert amount(count) == words
