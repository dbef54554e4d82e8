"""What a tuning method answers: where it acts, which parameters it puts there, and how a call changes by them.

A method of one's own is a subclass of `PEFTMethod` with some of its answers; `tuning.attach` asks them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from jaxnlp.config import check_types, did_you_mean
from jaxnlp.errors import UserError
from jaxnlp.nn.interceptors import ModuleCall
from jaxnlp.nn.partitioning import gather_for_compute
from jaxnlp.nn.quantised import is_quantised
from jaxnlp.peft.targets import Parameter, Target, matches
from jaxnlp.trees import Path

SHARED = "prompt_encoder"


@dataclasses.dataclass(frozen=True)
class AdapterParam:
    """A tuned parameter. shape, axes: without those of stacked layers.

    init: (key, own) -> the array at the start, of one layer; own: the base's parameters of the module, by name.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Callable[[jax.Array, dict[str, jax.Array]], jax.Array]
    dtype: str = "float32"


@dataclasses.dataclass(kw_only=True)
class PEFTMethod:
    """What every method has; a method is this and the functions below.

    modules_to_save: patterns of the model's own parameters that are fully trained too, as ("head/*",). None: those of
        the head, if the model is a pretrained model with a new head.
    base_dtype: of the base's parameters that are not trained, as "bfloat16"; None: as the model has them. "int8" and
        "nf4": of the kernels of linear maps alone (`nn/quantised.py`), all other parameters are as the model has them.
    base_block: quantised kernels have a scale for each so many numbers, or the largest even divisor below of the axis.
    skip_modules: patterns of modules whose kernels are not quantised. None: output maps, that is kernels with an axis
        "vocab", and what is called head or lm_head.
    """

    modules_to_save: tuple[str, ...] | None = None
    base_dtype: str | None = None
    base_block: int = 64
    skip_modules: tuple[str, ...] | None = None

    methods = ("__call__",)  # of a module, which a tuning method changes
    computes: ClassVar[tuple[str, ...]] = ()  # fields by which the same parameters mean something else
    front: ClassVar[int] = 0  # number of positions before the text's in a decoder's cache
    one_text: ClassVar[bool] = False  # whether only one of several documents packed in a row would be changed

    def check(self) -> None:
        """Raises FieldError naming the first field that cannot work; this one, of which a type is wrong."""
        check_types(self)

    def check_pipeline(self, stages: int) -> None:
        """Raises FieldError if the method cannot act on one pipeline stage alone."""

    def resolved(self, tokenizer: Any, placeholder: int | None) -> "PEFTMethod":
        """The method with what depends on a run's data filled in.

        Args:
            placeholder: the token that stands for a prompt's vectors in its texts, where they have a template.
        """
        return self

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        """Raises UserError for a batch, as it is on the host, that the method cannot act on as it is meant to."""

    def choose(self, targets: list[Target]) -> list[Target]:
        """Where it acts, of all modules called. Raises UserError for a pattern that matches nothing it can serve."""
        return []

    def leaves(self, target: Target) -> dict[str, AdapterParam]:
        """The parameters that it puts beside a target's own."""
        return {}

    def call(
        self, leaves: dict[str, jax.Array], target: Target, call: ModuleCall, fn: Callable, args: tuple, kwargs: dict
    ):
        """The changed call; fn(*args, **kwargs) is the module's own."""
        return fn(*args, **kwargs)

    def merged(self, target: Target, own: dict[str, jax.Array], leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The target's own parameters such that without leaves its call is what the changed one was; of one layer."""
        raise UserError(
            f"{type(self).__name__}(): no parameters of the base do what it does to calls; it is not merged"
        )

    def unmerged(self, target: Target, own: dict[str, jax.Array], leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The way back."""
        raise UserError(f"{type(self).__name__}(): cannot be merged, so not unmerged")

    def check_unmerged(self, name: str, leaves: dict[str, jax.Array]) -> None:
        """Raises UserError where there is no way back from these leaves of a target, whose path is `name`."""

    def shared(self, chosen: list[Target]) -> dict[str, AdapterParam]:
        """Parameters that are tuned in place of the leaves, which `computed` makes of them; they lie in `SHARED`."""
        return {}

    def computed(self, shared: dict[str, jax.Array], chosen: list[Target]) -> dict[Path, dict[str, jax.Array]]:
        """The leaves of each target (with stacked layers in front), made of the shared parameters."""
        return {}

    def outer(self, targets: list[Target], chosen: list[Target]) -> Path | None:
        """The module around its targets whose call changes too, or None."""
        return None

    def call_outer(self, call: ModuleCall, fn: Callable, args: tuple, kwargs: dict) -> Any:
        """That module's changed call."""
        return fn(*args, **kwargs)

    def begin_cache(self, run: Callable, params: Any, cache: Any) -> Any:
        """An empty cache with what a text begins with already in it; see `Tuning.begin_cache`."""
        return cache

    def rate(self, name: str) -> float:
        """By what a leaf's learning rate is multiplied."""
        return 1.0

    def picks(self, own: dict[str, Parameter]) -> list[str]:
        """Which of the model's own parameters (by path) it trains. Raises UserError for a pattern that has none."""
        return []


def picked(own: dict[str, Parameter], patterns: tuple[str, ...], field: str) -> list[str]:
    """The parameters (paths) that match a pattern. Raises UserError for a pattern that has none, with near ones."""
    found: dict[str, None] = {}
    for pattern in patterns:
        hit = [name for name in own if matches(name, pattern)]
        if not hit:
            near = did_you_mean(pattern, list(own))
            raise UserError(f"{field}={pattern!r}: the model has no such parameter{near}")
        found |= dict.fromkeys(hit)
    return list(found)


def own_parameters(module: Any, target: Target) -> dict[str, jax.Array]:
    """A module's own parameters within its call, laid out as they are used."""

    def given(name, p):
        x = module.get_variable("params", name)
        return x.unbox(x.how.dtype) if is_quantised(x) else gather_for_compute(x, p.axes[target.layers :])

    return {name: given(name, p) for name, p in target.parameters.items()}
