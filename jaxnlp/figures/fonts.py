"""Fonts for labels in any script: chooses installed fonts that have the characters, and escapes the rest."""

import functools
from collections.abc import Iterable

FIRST = "DejaVu Sans Mono"  # included in matplotlib


def legible(labels: Iterable[str]) -> tuple[list[str], list[str]]:
    """(labels, families): the labels, and the font families to draw them with, for matplotlib's `family`.

    Characters that the first family lacks are looked up in the installed fonts. A character that no font has is
    replaced by its code point, as <U+4E2D>, instead of an empty box.
    """
    labels = list(labels)
    chosen = [FIRST]
    missing = {c for label in labels for c in label if ord(c) not in _characters(FIRST)}
    for family in sorted(_files()) if missing else ():
        if family.startswith("Last Resort"):  # its glyphs are placeholders
            continue
        covered = {c for c in missing if ord(c) in _characters(family)}
        if covered:
            chosen.append(family)
            missing -= covered
        if not missing:
            break
    codes = str.maketrans({c: f"<U+{ord(c):04X}>" for c in missing})
    return [label.translate(codes) for label in labels], chosen


@functools.cache
def _files() -> dict[str, str]:
    """{family: font file} of the installed upright fonts; the regular weight is preferred."""
    from matplotlib import font_manager

    upright = [entry for entry in font_manager.fontManager.ttflist if entry.style == "normal"]
    return {entry.name: entry.fname for entry in sorted(upright, key=lambda e: (e.name, e.weight != 400))[::-1]}


@functools.cache
def _characters(family: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(_files()[family]).get_charmap())
    except (KeyError, OSError, RuntimeError):  # a font file that cannot be read has no characters
        return frozenset()
