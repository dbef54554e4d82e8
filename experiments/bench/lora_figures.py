"""Helpers of `lora_compiled.py` to read a compiled program and format the results; a module without flags."""

import collections
import re
from collections.abc import Iterable
from typing import Any

RESULT = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = \w+\[([\d,]+)\]\S* ([\w-]+)\(", re.M)
MADE = ("fusion", "dot", "convolution", "dynamic-update-slice", "add", "scatter")


def compiled_table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    lines = ["| step | temporaries | peak | results as large as a stack of kernels | operations |", f"|{'---|' * 5}"]
    for name in ("LoRA", "full"):
        result = results[name]
        sizes = f"{result['temporaries'] / 1e9:.2f} GB | {result['peak'] / 1e9:.2f} GB"
        lines.append(f"| {name} | {sizes} | {result['weight gradients']} | {results[f'{name}, flops'] / 1e12:.1f}e12 |")
    return "\n".join(lines)


def weight_gradients(text: str, shapes: Iterable[tuple[int, ...]]) -> int:
    """Number of arithmetic results in the HLO text of a compiled program that have one of these shapes."""
    dimensions = {",".join(map(str, shape)) for shape in shapes}
    results = collections.Counter(shape for shape, kind in RESULT.findall(text) if kind in MADE)
    return sum(count for shape, count in results.items() if shape in dimensions)
