"""Full fine-tuning, with some parameters frozen.

For continued pretraining, e.g. on in-domain texts (Gururangan et al. 2020, arXiv:2004.10964), use `Full()` or no PEFT
method, with the model's pretraining objective.
"""

import dataclasses

from jaxnlp.errors import UserError
from jaxnlp.peft.method import PEFTMethod, picked
from jaxnlp.peft.targets import Parameter


@dataclasses.dataclass(kw_only=True)
class Full(PEFTMethod):
    """Trains all parameters except frozen ones.

    frozen: patterns of frozen parameters, e.g. ("trunk/embed/*", "trunk/block_0/*").
    """

    frozen: tuple[str, ...] = ()

    def picks(self, params: dict[str, Parameter]) -> list[str]:
        frozen = picked(params, self.frozen, "peft.frozen")
        if len(frozen) == len(params):
            raise UserError(
                f"peft.frozen={self.frozen}: freezes every parameter; expected patterns that leave some to train"
            )
        return [name for name in params if name not in frozen]
