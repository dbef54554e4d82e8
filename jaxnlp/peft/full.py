"""Full fine-tuning, with some parameters frozen.

Continued pretraining, as on texts of a domain (Gururangan et al. 2020, arXiv:2004.10964), is `Full()` or no tuning
method, with the objective that the model was pretrained with.
"""

import dataclasses

from jaxnlp.errors import UserError
from jaxnlp.peft.method import PEFTMethod, picked
from jaxnlp.peft.targets import Parameter


@dataclasses.dataclass(kw_only=True)
class Full(PEFTMethod):
    """Trains all parameters but the frozen ones.

    frozen: patterns of parameters that keep their values, as ("trunk/embed/*", "trunk/block_0/*").
    """

    frozen: tuple[str, ...] = ()

    def picks(self, own: dict[str, Parameter]) -> list[str]:
        frozen = picked(own, self.frozen, "tuning.frozen")
        if len(frozen) == len(own):
            raise UserError(f"tuning.frozen={self.frozen}: nothing is left to train")
        return [name for name in own if name not in frozen]
