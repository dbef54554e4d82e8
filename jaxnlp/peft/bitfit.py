"""BitFit: training of the bias terms alone (Ben Zaken et al. 2022, arXiv:2106.10199)."""

import dataclasses

from jaxnlp.errors import FieldError
from jaxnlp.peft.method import PEFTMethod, picked
from jaxnlp.peft.targets import Parameter


@dataclasses.dataclass(kw_only=True)
class BitFit(PEFTMethod):
    """Trains bias terms only.

    terms: patterns of bias parameters; the paper's smaller variant is ("*/query/bias", "*/mlp/up/bias").
    """

    terms: tuple[str, ...] = ("bias",)

    def check(self) -> None:
        super().check()
        if not self.terms:
            raise FieldError("terms", self.terms, "expected patterns of parameters, as ('bias',)")

    def picks(self, params: dict[str, Parameter]) -> list[str]:
        return picked(params, self.terms, "peft.terms")
