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
    family = huggingface.family_of(config)
    if family is None:
        why = huggingface.reason(config)
        raise UserError(
            f"{type(config).__name__}: transformers has no class for this model{why}, so PEFT has no adapters of it"
        )
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


def patterns(paths: Sequence[str], sizes: Any) -> tuple[str, ...]:
    """Paths of modules as patterns: with the numbers of blocks left open, so that they fit a scanned model too, where
    every layer's is there; else as they are. sizes: shapes of an unrolled model by path."""
    layers, there = layers_of(sizes), set(paths)
    return tuple(dict.fromkeys(opened(path) if there.issuperset(layers[opened(path)]) else path for path in paths))


def layers_of(sizes: Any) -> dict[str, list[str]]:
    """Paths of the modules that differ by their layer alone, by their one pattern. sizes: as above."""
    found: dict[str, list[str]] = {}
    for module in dict.fromkeys(path.rpartition("/")[0] for path in sizes):
        found.setdefault(opened(module), []).append(module)
    return found


def opened(path: str) -> str:
    """A path with the numbers of blocks left open."""
    return "/".join("block*" if part.startswith("block_") else part for part in path.split("/"))
