"""JSON that every parser reads. JSON has no NaN and no infinities, which Python's own module writes nevertheless.

    dumps({"loss": nan, "step": 3})   {"loss": null, "step": 3, "not_finite": {"loss": "NaN"}}

A number that is not finite becomes null, and the enclosing object records it. Outside an object, it becomes a string
that `float` reads. `loads` restores the numbers, and also reads the NaN and Infinity of Python's module.
"""

import json
import math
import re
from typing import Any

REASON = "not_finite"
"""The key of an object that maps each field (as "loss", or "losses[2][0]" in nested lists) to the number it held."""
NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dumps(value: Any, **options: Any) -> str:
    """`value` as JSON. options: those of `json.dumps`, except allow_nan."""
    return json.dumps(encoded(value), allow_nan=False, **options)


def loads(text: str | bytes) -> Any:
    """The value of `dumps`. Raises ValueError for text that is not JSON."""
    return decoded(json.loads(text))


def encoded(value: Any) -> Any:
    """`value` without numbers that are not finite, for writers that call `json.dumps` themselves."""
    if isinstance(value, dict):
        reasons: dict[str, str] = {}
        fields = {key: _encoded(part, str(key), reasons) for key, part in value.items()}
        if not reasons:
            return fields
        if REASON in fields:  # a field of that name belongs to the value
            return {key: encoded(part) for key, part in value.items()}
        return {**fields, REASON: reasons}
    if isinstance(value, (list, tuple)):
        return [encoded(part) for part in value]
    return name_of(value) if isinstance(value, float) and not math.isfinite(value) else value


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


def _encoded(value: Any, place: str, reasons: dict[str, str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        reasons[place] = name_of(value)
        return None
    if isinstance(value, (list, tuple)):
        return [_encoded(part, f"{place}[{i}]", reasons) for i, part in enumerate(value)]
    return encoded(value)


def _restore(fields: dict[str, Any], place: str, number: float) -> None:
    """Puts the number back at its place; a place that does not exist is ignored."""
    name, indices = place, []
    while name not in fields and (match := re.fullmatch(r"(.*)\[(\d+)\]", name, re.DOTALL)):
        name, indices = match[1], [int(match[2]), *indices]
    holder: Any = fields
    for key in [name, *indices]:
        inside = key in holder if isinstance(holder, dict) else isinstance(holder, list) and key < len(holder)
        if not inside:
            return
        parent, last, holder = holder, key, holder[key]
    if holder is None:
        parent[last] = number
