"""JSON that every parser reads. JSON has no NaN and no infinities, which Python's own module writes nevertheless.

    dumps({"loss": nan, "step": 3})   {"loss": null, "step": 3, "not_finite": {"loss": "NaN"}}

A number that is not finite becomes null, and the enclosing object records it. Outside an object, it becomes a string
that `float` reads. `loads` restores the numbers, and also reads the NaN and Infinity of Python's module. Numbers of
numpy are written as Python's. Keys become strings, as in Python's module: the key NaN becomes "NaN".
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

REASON = "not_finite"
"""The key of an object that maps each field (as "loss", or "losses[2][0]" in nested lists) to the number it held.
A field whose name begins with a quote or ends like an index is quoted, as "\\"losses[2]\\"[0]"."""
NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dumps(value: Any, **options: Any) -> str:
    """`value` as JSON. options: those of `json.dumps`, except allow_nan.

    Raises:
        ValueError: two keys of a dictionary are the same string in JSON, as 1 and "1".
        TypeError: a value or a key that JSON does not have.
    """
    return json.dumps(encoded(value), allow_nan=False, **options)


def loads(text: str | bytes) -> Any:
    """The value of `dumps`. Raises ValueError for text that is not JSON."""
    return decoded(json.loads(text))


def encoded(value: Any) -> Any:
    """`value` without numbers that are not finite, for writers that call `json.dumps` themselves."""
    if isinstance(value, dict):
        reasons: dict[str, str] = {}
        value = _with_json_keys(value)
        fields = {key: _encoded(part, _place(key), reasons) for key, part in value.items()}
        if not reasons:
            return fields
        if REASON in fields:  # a field of that name belongs to the value
            return {key: encoded(part) for key, part in value.items()}
        return {**fields, REASON: reasons}
    if isinstance(value, (list, tuple)):
        return [encoded(part) for part in value]
    value = _plain(value)
    return name_of(value) if _is_not_finite(value) else value


def decoded(value: Any) -> Any:
    """The inverse of `encoded`, for readers that call `json.loads` themselves."""
    if isinstance(value, list):
        return [decoded(part) for part in value]
    if not isinstance(value, dict):
        return value
    reasons = value.get(REASON)
    fields = {key: decoded(part) for key, part in value.items()}
    if not isinstance(reasons, dict) or not reasons or not all(str(name) in NAMES for name in reasons.values()):
        return fields
    del fields[REASON]
    for place, name in reasons.items():
        _restore(fields, place, NAMES[name])
    return fields


def name_of(number: float) -> str:
    """The name of a number that is not finite: a key of `NAMES`."""
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _plain(value: Any) -> Any:
    """Python's number of a number of numpy; other values as they are."""
    return value.item() if isinstance(value, (np.number, np.bool_)) else value


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _with_json_keys(value: dict[Any, Any]) -> dict[Any, Any]:
    """The dictionary with the key NaN as "NaN", and those of numpy as Python's.

    Raises:
        ValueError: two keys are the same string in JSON.
    """
    keys = [name_of(key) if _is_not_finite(key) else key for key in map(_plain, value)]
    names = [_name(key) for key in keys]
    if len({*names}) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"two keys of a dictionary are {twice!r} in JSON; expected keys that differ as strings")
    return dict(zip(keys, value.values(), strict=True))


def _name(key: Any) -> str:
    """The string that a key is in JSON."""
    return key if isinstance(key, str) else json.dumps(key) if key is None or isinstance(key, bool) else str(key)


def _place(key: Any) -> str:
    """A field's name as the beginning of a place, quoted where it could be taken for another field's place."""
    name = _name(key)
    return json.dumps(name) if name.startswith('"') or re.search(r"\[\d+\]\Z", name) else name


def _encoded(value: Any, place: str, reasons: dict[str, str]) -> Any:
    value = _plain(value)
    if _is_not_finite(value):
        reasons[place] = name_of(value)
        return None
    if isinstance(value, (list, tuple)):
        return [_encoded(part, f"{place}[{i}]", reasons) for i, part in enumerate(value)]
    return encoded(value)


def _restore(fields: dict[str, Any], place: str, number: float) -> None:
    """Puts the number back at its place; a place that does not exist is ignored."""
    for name, indices in _readings(place):
        holder: Any = fields
        path: list[Any] = [name, *indices]
        for key in path:
            parent, last = holder, key
            inside = key in holder if isinstance(holder, dict) else isinstance(holder, list) and key < len(holder)
            if not inside:
                break
            holder = holder[key]
        else:
            if holder is None:
                parent[last] = number
                return


def _readings(place: str) -> Iterator[tuple[str, list[int]]]:
    """The (field, indices) that a place can mean, the likeliest first: older files have no quotes."""
    if quoted := re.fullmatch(r'("(?:[^"\\]|\\.)*")((?:\[\d+\])*)', place):
        yield json.loads(quoted[1]), [int(i) for i in re.findall(r"\d+", quoted[2])]
    starts = [match.start() for match in re.finditer(r"\[\d+\](?=(?:\[\d+\])*\Z)", place)]
    for start in [*starts, len(place)]:
        yield place[:start], [int(i) for i in re.findall(r"\d+", place[start:])]
