"""Training some of a model's own parameters: its biases (BitFit), or all but those of some paths.

Continued pretraining, as on texts of a domain (Gururangan et al. 2020, arXiv:2004.10964), is `Full()` or no tuning at
all, with the objective that the model was pretrained with.
"""

import dataclasses

from jaxnlp.errors import FieldError, UserError
from jaxnlp.peft.method import PEFTMethod, picked
from jaxnlp.peft.targets import Parameter


@dataclasses.dataclass(kw_only=True)
class BitFit(PEFTMethod):
    """Only bias terms are trained (Ben Zaken et al. 2022, arXiv:2106.10199).

    terms: patterns of them; the paper's smaller variant is ("*/query/bias", "*/mlp/up/bias").
    """

    terms: tuple[str, ...] = ("bias",)

    def check(self) -> None:
        super().check()
        if not self.terms:
            raise FieldError("terms", self.terms, "expected patterns of parameters, as ('bias',)")

    def picks(self, own: dict[str, Parameter]) -> list[str]:
        return picked(own, self.terms, "peft.terms")


@dataclasses.dataclass(kw_only=True)
class Full(PEFTMethod):
    """All parameters are trained, but those of some paths.

    frozen: patterns of parameters that stay as they are, as ("trunk/embed/*", "trunk/block_0/*").
    """

    frozen: tuple[str, ...] = ()

    def picks(self, own: dict[str, Parameter]) -> list[str]:
        stay = picked(own, self.frozen, "peft.frozen")
        if len(stay) == len(own):
            raise UserError(f"peft.frozen={self.frozen}: nothing is left to train")
        return [name for name in own if name not in stay]
