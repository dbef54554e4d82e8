"""A figure of PEFT methods: the share of the parameters that each trains."""

from collections.abc import Mapping
from typing import Any

from jaxnlp.figures.parallelism import COLOURS, DPI


def draw_trained(percent: Mapping[str, float], title: str) -> Any:
    """One bar per method, on a logarithmic scale.

    Args:
        percent: {method: trained parameters in percent of the base model's}, each above 0.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 1.3 + 0.34 * len(percent)), dpi=DPI)
    axis = figure.subplots()
    bars = axis.barh(list(percent), list(percent.values()), color=COLOURS["parameters"], height=0.7)
    axis.bar_label(bars, [f"{share:.3g}%" for share in percent.values()], padding=4, fontsize=9)
    axis.set_xscale("log")
    axis.set_xlim(min(percent.values()) / 3, 10 * max(percent.values()))
    axis.invert_yaxis()
    axis.set_xlabel("trained parameters, % of the model's", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, weight="bold")
    figure.tight_layout()
    return figure
