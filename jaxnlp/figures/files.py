"""Saving figures as files."""

import pathlib
from typing import Any

import numpy as np

from jaxnlp.scratch import replacing

MAX_PIXELS = (1 << 16) - 1
"""Largest width and height that matplotlib draws."""


def save_png(figure: Any, out: pathlib.Path) -> None:
    """Writes a matplotlib figure as a PNG and creates its folder.

    The image is reduced to 256 colours, which makes the file about a third of the size. A figure larger than
    `MAX_PIXELS` is drawn at a lower resolution.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(min(figure.dpi, MAX_PIXELS / max(figure.get_size_inches())))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Not by way of a PNG, since Pillow refuses to open images of more than 178 million pixels.
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    with replacing(out) as new:
        picture.save(new, format="PNG", optimize=True)
