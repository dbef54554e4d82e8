"""Parallelism by name: each preset is the tables of `sharding/rules.py`, to take, to print or to copy and change.

`sharding=ZERO3.over(fsdp=8)` in a config is the preset over a mesh; `dict(TP.params, vocab=None)` the start of a table
of one's own. `fsdp` is the axis of ZeRO: like `data` it splits the batch, and what a table maps to it is split too.
"""

from jaxnlp.sharding.pipeline import GPipe
from jaxnlp.sharding.rules import ACTIVATIONS, FSDP, REPLICATED, TENSOR, Sharding

DDP = Sharding()
"""Data parallel: every device has the whole model; gradients are all-reduced (Li et al. 2020, arXiv:2006.15704)."""

ZERO1 = Sharding(gradients=REPLICATED, optimizer=FSDP).over(fsdp=-1)
"""The optimizer's state is split (Rajbhandari et al. 2020, arXiv:1910.02054, P_os); gradients are all-reduced."""

ZERO2 = Sharding(gradients=FSDP, optimizer=FSDP).over(fsdp=-1)
"""Gradients are split too (P_os+g): reduce-scattered, and the new parameters gathered."""

ZERO3 = Sharding(params=FSDP, gradients=FSDP, optimizer=FSDP).over(fsdp=-1)
"""Parameters are split too (P_os+g+p): gathered layer by layer where used; what PyTorch calls FSDP."""

TP = Sharding(params=TENSOR).over(tensor=-1)
"""Tensor parallel: heads, feed-forward and vocabulary are split (Shoeybi et al. 2019, arXiv:1909.08053)."""

TP_SP = Sharding(params=TENSOR, activations={**ACTIVATIONS, "residual": ("sequence", "tensor")}).over(tensor=-1)
"""TP, and norms and dropout on a share of the sequence each (Korthikanti et al. 2022, arXiv:2205.05198)."""

STAGED = {"layers": "stage", "vocab": ("stage", "tensor")}

PP = Sharding(
    params={**REPLICATED, **STAGED}, activations={**ACTIVATIONS, "vocab": STAGED["vocab"]}, pipeline=GPipe()
).over(stage=-1)
"""Pipeline parallel: the layers are split over stages (Huang et al. 2019, arXiv:1811.06965), and the vocabulary too.

The model needs `scan_layers=True`, and `accum_steps` is the number of microbatches. `dataclasses.replace(PP,
pipeline=OneFOneB())` is another schedule."""

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
