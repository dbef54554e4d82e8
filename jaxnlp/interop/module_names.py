"""Maps Hugging Face module names to our parameter paths, from a family's table of tensors, for PEFT adapters."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.interop import huggingface
from jaxnlp.interop.tensors import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class HFModule:
    """A Hugging Face module: its full name, and the paths of our modules in the order of its outputs."""

    name: str
    paths: tuple[tuple[str, ...], ...]
    tensor: Tensor


def modules_of(config: Any) -> dict[str, HFModule]:
    """Every Hugging Face module with a matrix or a table, by name, for one of our configs.

    Raises:
        UserError: a model that transformers has no class for.
    """
    family = huggingface.family_of(config)
    if family is None:
        cause = huggingface.reason(config)
        raise UserError(
            f"{type(config).__name__}: transformers has no class for this model{cause}, so PEFT has no adapters for it"
        )
    by_name = {}
    for tensor in family.tensors(config):
        if tensor.kind != "vector":
            name = tensor.name.removesuffix(".weight")
            by_name[name] = HFModule(name, tuple(tuple(path.split("/"))[:-1] for path in tensor.paths), tensor)
    return by_name


def inputs_of(hf_module: HFModule, sizes: Any) -> tuple[int, ...]:
    """Shape of our input axes. sizes: our shapes by path."""
    shape = sizes[hf_module.tensor.paths[0]]
    return shape[:1] if hf_module.tensor.kind == "table" else shape[: hf_module.tensor.num_in]


def outputs_of(hf_module: HFModule, sizes: Any) -> list[tuple[int, ...]]:
    """Shapes of the output axes of each of our modules. sizes: our shapes by path."""
    num_in = 1 if hf_module.tensor.kind == "table" else hf_module.tensor.num_in
    return [sizes[path][num_in:] for path in hf_module.tensor.paths]


def patterns(paths: Sequence[str], sizes: Any) -> tuple[str, ...]:
    """Patterns that match the given module paths.

    If all layers' paths of a module are given, they become one pattern with `*` as the block number, which also matches
    a scanned model. Other paths are returned as they are.

    Args:
        sizes: parameter shapes of an unrolled model by path.
    """
    layers, all_paths = layers_of(sizes), set(paths)
    return tuple(dict.fromkeys(opened(path) if all_paths.issuperset(layers[opened(path)]) else path for path in paths))


def layers_of(sizes: Any) -> dict[str, list[str]]:
    """Module paths grouped by their pattern (`opened`), one per layer. sizes: as in `patterns`."""
    by_pattern: dict[str, list[str]] = {}
    for module in dict.fromkeys(path.rpartition("/")[0] for path in sizes):
        by_pattern.setdefault(opened(module), []).append(module)
    return by_pattern


def opened(path: str) -> str:
    """A path with block numbers replaced by `*`."""
    return "/".join("block*" if part.startswith("block_") else part for part in path.split("/"))
