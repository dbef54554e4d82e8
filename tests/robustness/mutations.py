"""Changes of a file's bytes, as damage and hand-made edits make them."""

import re

import numpy as np


def mutated(data: bytes, random: np.random.Generator, is_text: bool) -> bytes:
    """The data with one to three changes, of bytes or, in text, of words and numbers."""
    for _ in range(random.integers(1, 4)):
        kinds = [_flip, _cut, _insert, _repeat, _end, *([_value, _value] if is_text else [])]
        data = kinds[random.integers(len(kinds))](data, random)
    return data


VALUES = (
    b"null",
    b"-1",
    b"0",
    b'"16"',
    b"1e999",
    b"NaN",
    b"[]",
    b"{}",
    b"true",
    b"99999999999999999999",
    b'""',
    b"1.5",
)


def _value(data: bytes, random: np.random.Generator) -> bytes:
    """A number, word or string replaced by a value of another kind."""
    places = list(re.finditer(rb'-?\d[\d.e+-]*|"[^"\n]*"|\b(?:true|false|null)\b', data))
    if not places:
        return data
    place = places[random.integers(len(places))]
    return data[: place.start()] + VALUES[random.integers(len(VALUES))] + data[place.end() :]


def _flip(data: bytes, random: np.random.Generator) -> bytes:
    if not data:
        return data
    i = random.integers(len(data))
    return data[:i] + bytes([random.integers(256)]) + data[i + 1 :]


def _span(data: bytes, random: np.random.Generator) -> tuple[int, int]:
    start = int(random.integers(len(data) + 1))
    return start, start + int(random.integers(1, 40))


def _cut(data: bytes, random: np.random.Generator) -> bytes:
    start, stop = _span(data, random)
    return data[:start] + data[stop:]


def _insert(data: bytes, random: np.random.Generator) -> bytes:
    start, stop = _span(data, random)
    return data[:start] + random.bytes(stop - start) + data[start:]


def _repeat(data: bytes, random: np.random.Generator) -> bytes:
    start, stop = _span(data, random)
    return data[:stop] + data[start:stop] * int(random.integers(1, 4)) + data[stop:]


def _end(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(len(data) + 1)]
