"""Selection of the base kernels to quantise and of their block axis (QLoRA: Dettmers et al. 2023, arXiv:2305.14314)."""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.quantised import SMALLEST, Blocks, block_size
from jaxnlp.peft.targets import KERNEL, Target, choose
from jaxnlp.trees import Path

VOCAB = "vocab"  # the axis of output projections
HEADS = ("head", "lm_head")  # names of output projections, for kernels without axis names


def chosen_blocks(
    method: Any, targets: list[Target], picks: Collection[str], replaced: Collection[Path]
) -> dict[Path, Blocks]:
    """The quantisation of each kernel of a linear layer, by path, except trained kernels and `method.skip_modules`.

    Blocks run along the last input axis.

    Args:
        method: a `PEFTMethod`. targets: all called modules.
        picks: names of the model's own parameters that the method itself trains (`PEFTMethod.picks`).
        replaced: paths of all of the model's own parameters that are trained.

    Raises:
        FieldError: the method trains kernels of linear layers, no block size divides an axis, `base_block` is odd or
            below 2, or the model has no kernel to quantise.
        UserError: a pattern of `skip_modules` matches no linear layer.
    """
    kind, block = method.base_dtype, method.base_block
    if block < 2 or block % 2:
        raise FieldError("peft.base_block", block, "expected an even number, as 64")
    maps = [t for t in targets if t.num_in is not None and not _is_output(method, t)]
    if method.skip_modules:
        skipped = choose(maps, method.skip_modules, lambda t: True, "a linear map", "peft.skip_modules")
        maps = [t for t in maps if t not in skipped]
    if trained := [t.name for t in maps if f"{t.name}/{KERNEL}" in picks]:
        message = f"{type(method).__name__}() trains {trained[0]}/{KERNEL} itself, which then cannot be quantised"
        raise FieldError("peft.base_dtype", kind, f"{message}; use None, or a method that adds parameters, as LoRA()")
    blocks = {(*t.path, KERNEL): _blocks(kind, block, t) for t in maps if (*t.path, KERNEL) not in replaced}
    if not blocks:
        raise FieldError("peft.base_dtype", kind, "this model has no linear map to quantise; use 'bfloat16' or None")
    return blocks


def _is_output(method: Any, target: Target) -> bool:
    if method.skip_modules is not None:
        return False
    return VOCAB in target.parameters[KERNEL].axes or target.path[-1] in HEADS


def _blocks(kind: str, block: int, target: Target) -> Blocks:
    assert target.num_in is not None
    kernel, axis = target.parameters[KERNEL], target.num_in - 1
    shape, axes = kernel.shape[target.layers :], kernel.axes[target.layers :]
    size = block_size(shape[axis], block)
    if size is None:
        message = f"{target.name}/{KERNEL} has {shape[axis]} {axes[axis] or 'inputs'}, which no even block size from"
        message = f"{message} {min(SMALLEST, block)} to {block} divides; exclude it with peft.skip_modules"
        raise FieldError("peft.base_block", block, message)
    return Blocks(kind, axis - len(shape), size, str(kernel.dtype), _computed(target), axes)


def _computed(target: Target) -> str:
    """Compute dtype of a module: from its policy, else Flax's field `dtype`, else the dtype of its kernel."""
    policy, dtype = target.fields.get("policy"), target.fields.get("dtype")
    if isinstance(policy, Policy):
        dtype = policy.operand_dtype
    return str(jnp.dtype(dtype or target.parameters[KERNEL].dtype))
