"""Training a subset of the model's own parameters: biases only (BitFit), or all except frozen ones.

For continued pretraining, e.g. on in-domain texts (Gururangan et al. 2020, arXiv:2004.10964), use `Full()` or no PEFT
method, with the model's pretraining objective.
"""

import dataclasses

from jaxnlp.errors import FieldError, UserError
from jaxnlp.peft.method import PEFTMethod, picked
from jaxnlp.peft.targets import Parameter


@dataclasses.dataclass(kw_only=True)
class BitFit(PEFTMethod):
    """Trains bias terms only (Ben Zaken et al. 2022, arXiv:2106.10199).

    terms: patterns of bias parameters; the paper's smaller variant is ("*/query/bias", "*/mlp/up/bias").
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
    """Trains all parameters except frozen ones.

    frozen: patterns of frozen parameters, e.g. ("trunk/embed/*", "trunk/block_0/*").
    """

    frozen: tuple[str, ...] = ()

    def picks(self, own: dict[str, Parameter]) -> list[str]:
        stay = picked(own, self.frozen, "peft.frozen")
        if len(stay) == len(own):
            raise UserError(f"peft.frozen={self.frozen}: nothing is left to train")
        return [name for name in own if name not in stay]
