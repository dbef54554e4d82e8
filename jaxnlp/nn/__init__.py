"""Layers and pure functions. The names below can be imported from this package; all others from their modules."""

from typing import TYPE_CHECKING

from jaxnlp import lazy

if TYPE_CHECKING:
    from jaxnlp.nn.attention import Additive, Attention, Dot, General, MultiHeadAttention, ScaledDot
    from jaxnlp.nn.masks import Mask
    from jaxnlp.nn.policy import Policy

__all__ = ["Additive", "Attention", "Dot", "General", "Mask", "MultiHeadAttention", "Policy", "ScaledDot"]

__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "Additive": "attention",
        "Attention": "attention",
        "Dot": "attention",
        "General": "attention",
        "Mask": "masks",
        "MultiHeadAttention": "attention",
        "Policy": "policy",
        "ScaledDot": "attention",
    },
)
