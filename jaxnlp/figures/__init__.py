"""Figures of models: functions from arrays and plain trees to matplotlib figures."""

from typing import TYPE_CHECKING

from jaxnlp import lazy

if TYPE_CHECKING:
    from jaxnlp.figures.architecture import draw_architecture
    from jaxnlp.figures.attention import AttentionMap, draw_attention
    from jaxnlp.figures.parallelism import Memory, draw_memory, draw_split, draw_traffic
    from jaxnlp.figures.pipeline import draw_schedule
    from jaxnlp.figures.plan import draw_measured, draw_plans
    from jaxnlp.figures.tuning import draw_trained

__all__ = [
    "AttentionMap",
    "Memory",
    "draw_architecture",
    "draw_attention",
    "draw_measured",
    "draw_memory",
    "draw_plans",
    "draw_schedule",
    "draw_split",
    "draw_traffic",
    "draw_trained",
]

__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "AttentionMap": "attention",
        "Memory": "parallelism",
        "draw_architecture": "architecture",
        "draw_attention": "attention",
        "draw_measured": "plan",
        "draw_memory": "parallelism",
        "draw_plans": "plan",
        "draw_schedule": "pipeline",
        "draw_split": "parallelism",
        "draw_traffic": "parallelism",
        "draw_trained": "tuning",
    },
)
