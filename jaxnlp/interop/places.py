"""Where in a model of ours a module of theirs is: read off the family's table of tensors, for adapters of PEFT."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.interop import huggingface
from jaxnlp.interop.tensors import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class Place:
    """A module of theirs: its name in the whole model, and ours by path, in the order of its outputs."""

    name: str
    paths: tuple[tuple[str, ...], ...]
    tensor: Tensor


def places(config: Any) -> dict[str, Place]:
    """Every module of theirs that has a matrix or a table, by name, for a model's config of ours.

    Raises:
        UserError: a model that transformers has no class for.
    """
    family = next((f for f in huggingface.FAMILIES if f.accepts(config)), None)
    if family is None:
        raise UserError(f"{type(config).__name__}: transformers has no class for this model, so PEFT has no adapters")
    found = {}
    for tensor in family.tensors(config):
        if tensor.kind != "vector":
            name = tensor.name.removesuffix(".weight")
            found[name] = Place(name, tuple(tuple(path.split("/"))[:-1] for path in tensor.paths), tensor)
    return found


def inputs_of(place: Place, sizes: Any) -> tuple[int, ...]:
    """Shape of the input axes of ours. sizes: shapes of ours by path."""
    shape = sizes[place.tensor.paths[0]]
    return shape[:1] if place.tensor.kind == "table" else shape[: place.tensor.num_in]


def outputs_of(place: Place, sizes: Any) -> list[tuple[int, ...]]:
    """Shapes of the output axes of each of ours. sizes: shapes of ours by path."""
    num_in = 1 if place.tensor.kind == "table" else place.tensor.num_in
    return [sizes[path][num_in:] for path in place.tensor.paths]


def patterns(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths of modules as patterns, with the numbers of blocks left open, so that they fit a scanned model too."""
    parts = (path.split("/") for path in paths)
    return tuple(dict.fromkeys("/".join("block*" if p.startswith("block_") else p for p in path) for path in parts))
