"""Meshes, tables of rules, and pipeline schedules."""

from typing import TYPE_CHECKING

from jaxnlp import lazy

if TYPE_CHECKING:
    from jaxnlp.sharding.mesh import MeshConfig, make_mesh
    from jaxnlp.sharding.pipeline import SCHEDULES, bubble, idle, timetable
    from jaxnlp.sharding.presets import DDP, DP_PP_TP, PP, PRESETS, TP, TP_SP, ZERO1, ZERO2, ZERO3
    from jaxnlp.sharding.rules import REPLICATED, TENSOR, Sharding

__all__ = [
    "DDP",
    "DP_PP_TP",
    "PP",
    "PRESETS",
    "REPLICATED",
    "SCHEDULES",
    "TENSOR",
    "TP",
    "TP_SP",
    "ZERO1",
    "ZERO2",
    "ZERO3",
    "MeshConfig",
    "Sharding",
    "bubble",
    "idle",
    "make_mesh",
    "timetable",
]

__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "DDP": "presets",
        "DP_PP_TP": "presets",
        "MeshConfig": "mesh",
        "PP": "presets",
        "PRESETS": "presets",
        "REPLICATED": "rules",
        "SCHEDULES": "pipeline",
        "Sharding": "rules",
        "TENSOR": "rules",
        "TP": "presets",
        "TP_SP": "presets",
        "ZERO1": "presets",
        "ZERO2": "presets",
        "ZERO3": "presets",
        "bubble": "pipeline",
        "idle": "pipeline",
        "make_mesh": "mesh",
        "timetable": "pipeline",
    },
)
