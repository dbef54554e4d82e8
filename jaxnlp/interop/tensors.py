"""Converts a Hugging Face tensor to the parameters of ours that it holds, and back.

A family's table is a list of `Tensor`. Our kernels have several input or output axes, as (D, H, K). Hugging Face
tensors are matrices, and some hold several of our kernels side by side.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A Hugging Face tensor.

    name: its name in the checkpoint.
    paths: our parameters that it holds, in the order of its output axis, as "block_0/attention/query/kernel".
    kind: "linear", (outputs, inputs) as in torch.nn.Linear; "conv1d", (inputs, outputs) as in GPT-2; "vector", a bias
        or a norm's scale; "table", an embedding, equal on both sides.
    num_in: number of input axes of our kernels, for a matrix.
    """

    name: str
    paths: tuple[str, ...]
    kind: str
    num_in: int = 1

    def shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Shape of the Hugging Face tensor. shapes: our shapes by path."""
        if self.kind == "table":
            return shapes[self.paths[0]]
        if self.kind == "vector":
            return (sum(math.prod(shapes[path]) for path in self.paths),)
        inputs, outputs = self._sizes(shapes)
        return (sum(outputs), inputs) if self.kind == "linear" else (inputs, sum(outputs))

    def to_params(self, array: np.ndarray, shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
        """Our parameters by path, from the Hugging Face tensor. shapes: our shapes by path."""
        if self.kind == "table":
            return {self.paths[0]: array}
        if self.kind == "linear":
            array = array.T
        sizes = [math.prod(shapes[path]) for path in self.paths] if self.kind == "vector" else self._sizes(shapes)[1]
        parts = np.split(array, np.cumsum(sizes)[:-1], axis=-1)
        return {
            path: np.ascontiguousarray(part).reshape(shapes[path]) for path, part in zip(self.paths, parts, strict=True)
        }

    def to_tensor(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The Hugging Face tensor, from our parameters in the order of `paths`."""
        if self.kind == "table":
            return arrays[0]
        if self.kind == "vector":
            return np.concatenate([x.reshape(-1) for x in arrays])
        joined = np.concatenate([x.reshape(math.prod(x.shape[: self.num_in]), -1) for x in arrays], axis=-1)
        return np.ascontiguousarray(joined.T) if self.kind == "linear" else joined

    def _sizes(self, shapes: Mapping[str, Shape]) -> tuple[int, list[int]]:
        outputs = [math.prod(shapes[path][self.num_in :]) for path in self.paths]
        return math.prod(shapes[self.paths[0]][: self.num_in]), outputs


def linear(name: str, *paths: str, kind: str = "linear", num_in: int = 1, bias: bool = True) -> list[Tensor]:
    """`name.weight` and `name.bias` of a linear map, or of several of ours side by side."""
    rows = [Tensor(f"{name}.weight", tuple(f"{path}/kernel" for path in paths), kind, num_in)]
    return [*rows, Tensor(f"{name}.bias", tuple(f"{path}/bias" for path in paths), "vector")] if bias else rows


def norm(name: str, path: str, bias: bool = True) -> list[Tensor]:
    """`name.weight` and `name.bias` of a LayerNorm; the weight alone of an RMSNorm."""
    rows = [Tensor(f"{name}.weight", (f"{path}/scale",), "vector")]
    return [*rows, Tensor(f"{name}.bias", (f"{path}/bias",), "vector")] if bias else rows


def table(name: str, path: str) -> Tensor:
    """An embedding."""
    return Tensor(name, (f"{path}/embedding",), "table")
