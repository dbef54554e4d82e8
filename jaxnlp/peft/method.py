"""Interface of a PEFT method: target selection, tuned parameters, and the change to the forward pass.

To add a method, subclass `PEFTMethod` and override some of its functions; `tuning.attach` calls them.
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
    """A tuned parameter. shape, axes: those of one layer, without the axes of stacked layers.

    init: (key, weights) -> the initial array of one layer; weights: the base's parameters of the module, by name.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Callable[[jax.Array, dict[str, jax.Array]], jax.Array]
    dtype: str = "float32"


@dataclasses.dataclass(kw_only=True)
class PEFTMethod:
    """Base class of PEFT methods, with the fields that all of them share.

    modules_to_save: patterns of the model's own parameters that are fully trained as well, e.g. ("head/*",). None: the
        head's parameters, if the model is a pretrained model with a new head.
    base_dtype: dtype of the frozen base parameters, e.g. "bfloat16"; None: unchanged. "int8" and "nf4" quantise the
        kernels of linear layers only (`nn/quantised.py`).
    base_block: block size of the quantisation scales: each block of this many values of a kernel has one scale. If it
        does not divide the axis, the largest even divisor of the axis below it is used.
    skip_modules: patterns of modules whose kernels are not quantised. None: output projections, i.e. kernels with an
        axis "vocab" and modules named head or lm_head.
    """

    modules_to_save: tuple[str, ...] | None = None
    base_dtype: str | None = None
    base_block: int = 64
    skip_modules: tuple[str, ...] | None = None

    intercepted_methods = ("__call__",)  # methods of a module whose calls the PEFT method changes
    computation_fields: ClassVar[tuple[str, ...]] = ()  # fields that change what the same parameters compute
    num_virtual_tokens: ClassVar[int] = 0  # number of positions before the text's in a decoder's cache
    single_text_only: ClassVar[bool] = False  # whether it changes only one of several texts in a row

    def check(self) -> None:
        """Raises FieldError for the first invalid field. The base class checks the types of the fields."""
        check_types(self)

    def check_pipeline(self, stages: int) -> None:
        """Raises FieldError if the method cannot act on one pipeline stage alone."""

    def resolved(self, tokenizer: Any, placeholder: int | None) -> "PEFTMethod":
        """The method with the fields that depend on a run's data filled in.

        Args:
            placeholder: id of the token that marks the prompt positions in a template's texts; None without a template.
        """
        return self

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        """Raises UserError if the method cannot be applied to a batch (host arrays) as intended."""

    def choose(self, targets: list[Target]) -> list[Target]:
        """The modules that the method changes, out of all called ones. Raises UserError for a pattern without match."""
        return []

    def leaves(self, target: Target) -> dict[str, AdapterParam]:
        """The parameters that the method adds to a target, by name."""
        return {}

    def call(
        self, leaves: dict[str, jax.Array], target: Target, call: ModuleCall, fn: Callable, args: tuple, kwargs: dict
    ):
        """The changed call of a target; fn(*args, **kwargs) is the module's own call."""
        return fn(*args, **kwargs)

    def merged(
        self, target: Target, weights: dict[str, jax.Array], leaves: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Parameters of one layer of the target whose plain call equals the changed call. Raises UserError if none."""
        raise UserError(
            f"{type(self).__name__}(): cannot be merged, since no parameters of the base have the same effect"
        )

    def unmerged(
        self, target: Target, weights: dict[str, jax.Array], leaves: dict[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Inverse of `merged`, up to rounding. Raises UserError if there is none."""
        raise UserError(f"{type(self).__name__}(): cannot be unmerged, since it cannot be merged")

    def check_unmerged(self, name: str, leaves: dict[str, jax.Array]) -> None:
        """Raises UserError if these leaves of the target with path `name` cannot be unmerged."""

    def shared(self, chosen: list[Target]) -> dict[str, AdapterParam]:
        """Parameters tuned in place of the leaves, which `computed` derives from them; stored under key `SHARED`."""
        return {}

    def computed(self, shared: dict[str, jax.Array], chosen: list[Target]) -> dict[Path, dict[str, jax.Array]]:
        """The leaves of each target (stacked layers leading), computed from the shared parameters."""
        return {}

    def outer(self, targets: list[Target], chosen: list[Target]) -> Path | None:
        """Path of a module around the targets whose call changes as well, or None."""
        return None

    def call_outer(self, call: ModuleCall, fn: Callable, args: tuple, kwargs: dict) -> Any:
        """The changed call of the module of `outer`; fn(*args, **kwargs) is the module's own call."""
        return fn(*args, **kwargs)

    def num_cached_virtual_tokens(self, encoder_decoder: bool) -> int:
        """Number of positions that the method takes at the front of a decoder's cache."""
        return self.num_virtual_tokens

    def begin_cache(self, run: Callable, params: Any, cache: Any) -> Any:
        """An empty cache with the method's prompt or prefix already in it; see `TunedModel.begin_cache`."""
        return cache

    def rate(self, name: str) -> float:
        """Learning-rate multiplier of a leaf."""
        return 1.0

    def picks(self, params: dict[str, Parameter]) -> list[str]:
        """Paths of the model's own parameters that the method trains. Raises UserError for a pattern without match."""
        return []


def picked(params: dict[str, Parameter], patterns: tuple[str, ...], field: str) -> list[str]:
    """Paths of the parameters that match a pattern. Raises UserError for a pattern without match, with close names."""
    paths: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in params if matches(name, pattern)]
        if not matched:
            near = did_you_mean(pattern, list(params))
            raise UserError(f"{field}={pattern!r}: the model has no such parameter{near}")
        paths |= dict.fromkeys(matched)
    return list(paths)


def own_parameters(module: Any, target: Target) -> dict[str, jax.Array]:
    """A module's own parameters inside its call, resharded for use; quantised ones are dequantised."""

    def read(name, p):
        x = module.get_variable("params", name)
        return x.unbox(x.how.dtype) if is_quantised(x) else gather_for_compute(x, p.axes[target.layers :])

    return {name: read(name, p) for name, p in target.parameters.items()}
