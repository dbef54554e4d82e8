"""Parameter-efficient fine-tuning: one method in one file."""

from typing import TYPE_CHECKING

from jaxnlp import lazy

if TYPE_CHECKING:
    from jaxnlp.peft.adapter import HOULSBY, PFEIFFER, Adapter
    from jaxnlp.peft.bitfit import BitFit
    from jaxnlp.peft.files import fingerprint
    from jaxnlp.peft.full import Full
    from jaxnlp.peft.ia3 import IA3
    from jaxnlp.peft.lora import LoRA
    from jaxnlp.peft.method import PEFTMethod
    from jaxnlp.peft.prefix import Prefix
    from jaxnlp.peft.prompt import Prompt, PTuning
    from jaxnlp.peft.tuning import TunedModel, attach

__all__ = [
    "HOULSBY",
    "IA3",
    "PFEIFFER",
    "Adapter",
    "BitFit",
    "Full",
    "LoRA",
    "PEFTMethod",
    "PTuning",
    "Prefix",
    "Prompt",
    "TunedModel",
    "attach",
    "fingerprint",
]

__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "Adapter": "adapter",
        "BitFit": "bitfit",
        "Full": "full",
        "HOULSBY": "adapter",
        "IA3": "ia3",
        "LoRA": "lora",
        "PEFTMethod": "method",
        "PFEIFFER": "adapter",
        "PTuning": "prompt",
        "Prefix": "prefix",
        "Prompt": "prompt",
        "TunedModel": "tuning",
        "attach": "tuning",
        "fingerprint": "files",
    },
)
