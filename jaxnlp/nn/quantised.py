"""Kernels quantised to 8 or 4 bits in memory, and dequantised in the layer that uses them.

Block-wise quantisation and NormalFloat (Dettmers et al. 2023, arXiv:2305.14314, sections 2 and 3). A block of
consecutive numbers is stored as its largest magnitude c, in float32, and a code for each number x:

    int8:  round(127 x / c)
    nf4:   index of the level nearest to x / c, of 16 levels that are quantiles of a normal distribution

The paper's double quantisation (of the c) is not implemented.

`Quantised` is a Flax AxisMetadata box: a Linen module that reads the parameter gets floats, under `nn.scan` those of
one layer. Blocks run along one axis and codes are packed within a block, so that codes and c are sharded over a mesh
like the kernel, by the same rules.

Shape legend: N blocks along the axis, S numbers in a block.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxnlp.nn.partitioning import gather_for_compute
from jaxnlp.nn.remat import DEQUANTISED

BITS = {"int8": 8, "nf4": 4}
SMALLEST = 8  # numbers in a block; in smaller ones c would take more memory than the codes of nf4


def _normal_float() -> tuple[float, ...]:
    """The levels of NF4 (section 3 and appendix E).

    Quantiles of N(0, 1), 7 negative, zero, and 8 positive, divided by the largest. The outermost probability cannot be
    1, which has no finite quantile; its distance from 1 is the mean of half a step of either side, 1/32 and 1/30.
    """
    end = 1 - (1 / 32 + 1 / 30) / 2
    side = lambda count: [NormalDist().inv_cdf(p) for p in np.linspace(0.5, end, count)[1:]]
    levels = np.array([*(-x for x in reversed(side(8))), 0.0, *side(9)])
    return tuple(float(x) for x in (levels / levels.max()).astype(np.float32))


NF4 = _normal_float()


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a kernel is quantised.

    kind: "int8" or "nf4".
    axis: axis along which blocks run, counted from the end (-1 is the last).
    size: numbers in a block, even.
    dtype: dtype of the kernel before quantisation.
    compute_dtype: dtype in which the layer computes with the kernel.
    axes: logical axis names of the kernel, without the axis of stacked layers.
    """

    kind: str
    axis: int
    size: int
    dtype: str
    compute_dtype: str
    axes: tuple[str | None, ...]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["codes", "scales"], meta_fields=["how"])
@dataclasses.dataclass(frozen=True)
class Quantised(nn.meta.AxisMetadata):
    """A kernel stored as codes and the largest magnitude of each block; `unbox` dequantises it.

    codes: for int8, int8 of the kernel's shape. For nf4, uint8 with the blocks' axis half as long: a byte holds a code
        of the block's first half in its low 4 bits and one of the second half in its high 4 bits.
    scales: float32, with N numbers along the blocks' axis.
    """

    codes: jax.Array
    scales: jax.Array
    how: Blocks

    def unbox(self, dtype: str | None = None) -> jax.Array:
        """The dequantised kernel of one layer; under ZeRO-3 the codes are gathered. dtype: None: `compute_dtype`."""
        codes, scales = gather_for_compute(self.codes, self.how.axes), gather_for_compute(self.scales, self.how.axes)
        return _dequantised(codes, scales, self.how, dtype or self.how.compute_dtype)

    def floats(self) -> jax.Array:
        """The dequantised kernel, or stack of kernels, in its original dtype: (..., N S, ...)."""
        return _dequantised(self.codes, self.scales, self.how, self.how.dtype)

    def replace_boxed(self, val: Any) -> "Quantised":
        return quantise(val, self.how)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Quantised":
        """Returns self: layers are stacked on the leading axis, and axes are counted from the end."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Quantised":
        return self


def block_size(count: int, max_size: int) -> int | None:
    """Largest even size, up to `max_size`, of equal blocks of an axis of `count` numbers; None if too small."""
    largest = next((size for size in range(min(max_size, count), 1, -1) if size % 2 == 0 and count % size == 0), 0)
    return largest if largest >= min(SMALLEST, max_size) else None


def quantise(kernel: jax.Array, how: Blocks) -> Quantised:
    """Quantises a kernel, or a stack of kernels."""
    axis = kernel.ndim + how.axis
    shape = kernel.shape
    blocks = kernel.astype(jnp.float32).reshape(*shape[:axis], -1, how.size, *shape[axis + 1 :])
    scales = jnp.max(jnp.abs(blocks), axis=axis + 1)
    c = jnp.expand_dims(jnp.where(scales == 0, 1.0, scales), axis + 1)
    if how.kind == "int8":
        return Quantised(jnp.round(127 / c * blocks).astype(jnp.int8).reshape(shape), scales, how)
    # The index of the nearest level is the number of midpoints between levels that are below x / c.
    midway = [(low + high) / 2 for low, high in itertools.pairwise(NF4)]
    codes = functools.reduce(jnp.add, ((blocks / c > point).astype(jnp.uint8) for point in midway))
    first, second = jnp.split(codes, 2, axis=axis + 1)
    packed = (first | (second << 4)).reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return Quantised(packed, scales, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dequantised(codes: jax.Array, scales: jax.Array, how: Blocks, dtype: str) -> jax.Array:
    """Dequantisation as one operation that remat policies recognise by name (`nn/remat.py`). It has no gradient."""
    axis, shape = codes.ndim + how.axis, codes.shape
    blocks = codes.reshape(*shape[:axis], scales.shape[axis], -1, *shape[axis + 1 :])
    if how.kind == "int8":
        numbers = blocks.astype(jnp.float32) * jnp.expand_dims(scales / 127, axis + 1)
    else:
        halves = jnp.stack([blocks & 15, blocks >> 4], axis + 1)
        numbers = _levels(halves) * jnp.expand_dims(scales, (axis + 1, axis + 2))
    floats = numbers.astype(dtype).reshape(*shape[:axis], -1, *shape[axis + 1 :])
    return checkpoint_name(floats, DEQUANTISED)


_dequantised.defvjp(
    lambda codes, scales, how, dtype: (_dequantised(codes, scales, how, dtype), None),
    lambda how, dtype, _, dw: (None, None),
)


def _levels(codes: jax.Array) -> jax.Array:
    """The NF4 level of each code, selected bit by bit: table look-ups are slow on TPUs."""
    levels: list[Any] = [jnp.float32(level) for level in NF4]
    for bit in range(4):
        on = (codes >> bit) & 1 == 1
        levels = [jnp.where(on, high, low) for low, high in zip(levels[::2], levels[1::2], strict=True)]
    return levels[0]


def is_quantised(x: Any) -> bool:
    return isinstance(x, Quantised)


def dequantised(tree: Any) -> Any:
    """A parameter tree with the quantised kernels dequantised to their original dtype."""
    return jax.tree.map(lambda x: x.floats() if is_quantised(x) else x, tree, is_leaf=is_quantised)


def codes_kept(fn: Callable, module: nn.Module, name: str) -> Callable:
    """fn, a module's own call, with the codes of parameter `name` saved for the backward pass instead of its floats.

    The backward pass dequantises the codes again. Returns fn itself if the parameter is not quantised, or if the call
    may change variables (as when intermediates are captured): a call that is recomputed must have no side effects.
    """
    if not is_quantised(module.get_variable("params", name)) or module.scope is None or module.scope.mutable:
        return fn
    return lambda x, *args, **kwargs: jax.checkpoint(lambda x: fn(x, *args, **kwargs))(x)
