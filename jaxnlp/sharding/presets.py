"""Named parallelism presets: `Sharding` tables (`sharding/rules.py`) to use as they are, print, or copy and edit.

`sharding=ZERO3.over(fsdp=8)` in a config sets the preset's mesh. `dict(TP.params, vocab=None)` starts a custom table.
Mesh axis `fsdp` (ZeRO) shards the batch like `data`, plus whatever the rule tables map to it.
"""

from jaxnlp.sharding.pipeline import GPipe
from jaxnlp.sharding.rules import ACTIVATIONS, FSDP, REPLICATED, TENSOR, Sharding

DDP = Sharding()
"""Data parallel: every device has a full replica; gradients are all-reduced (Li et al. 2020, arXiv:2006.15704)."""

ZERO1 = Sharding(gradients=REPLICATED, optimizer=FSDP).over(fsdp=-1)
"""Optimizer state is sharded (Rajbhandari et al. 2020, arXiv:1910.02054, P_os); gradients are all-reduced."""

ZERO2 = Sharding(gradients=FSDP, optimizer=FSDP).over(fsdp=-1)
"""Gradients are sharded too (P_os+g): they are reduce-scattered, and the new parameters all-gathered."""

ZERO3 = Sharding(params=FSDP, gradients=FSDP, optimizer=FSDP).over(fsdp=-1)
"""Parameters are sharded too (P_os+g+p): they are all-gathered layer by layer at use. PyTorch's name is FSDP."""

TP = Sharding(params=TENSOR).over(tensor=-1)
"""Tensor parallel: heads, feed-forward and vocabulary are sharded (Shoeybi et al. 2019, arXiv:1909.08053)."""

TP_SP = Sharding(params=TENSOR, activations={**ACTIVATIONS, "residual": ("sequence", "tensor")}).over(tensor=-1)
"""TP with norms and dropout sequence-sharded (sequence parallel; Korthikanti et al. 2022, arXiv:2205.05198)."""

STAGED = {"layers": "stage", "vocab": ("stage", "tensor")}

PP = Sharding(
    params={**REPLICATED, **STAGED}, activations={**ACTIVATIONS, "vocab": STAGED["vocab"]}, pipeline=GPipe()
).over(stage=-1)
"""Pipeline parallel: layers (Huang et al. 2019, arXiv:1811.06965) and vocabulary are sharded over stages.

Requires `scan_layers=True`; `accum_steps` is the number of microbatches. `dataclasses.replace(PP,
pipeline=OneFOneB())` selects another schedule."""

DP_PP_TP = Sharding(params={**TENSOR, **STAGED}, activations=PP.activations, pipeline=GPipe()).over(
    data=-1, stage=2, tensor=2
)
"""Data, pipeline and tensor parallel at once (Narayanan et al. 2021, arXiv:2104.04473)."""

PRESETS = {
    "DDP": DDP,
    "ZERO1": ZERO1,
    "ZERO2": ZERO2,
    "ZERO3": ZERO3,
    "TP": TP,
    "TP_SP": TP_SP,
    "PP": PP,
    "DP_PP_TP": DP_PP_TP,
}
