"""Which kernels of a base are quantised, and along which axis (QLoRA: Dettmers et al. 2023, arXiv:2305.14314)."""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.quantised import SMALLEST, Blocks, block_size
from jaxnlp.peft.targets import KERNEL, Target, choose
from jaxnlp.trees import Path

VOCAB = "vocab"  # the axis of output maps
HEADS = ("head", "lm_head")  # names of output maps, where axes have none


def chosen_blocks(
    method: Any, targets: list[Target], picks: Collection[str], replaced: Collection[Path]
) -> dict[Path, Blocks]:
    """How each kernel of a linear map is quantised, by its path; not those that are trained, nor `method.skip_modules`.

    Blocks run along the last of the input axes.

    Args:
        method: a `Method`. targets: all modules that are called. picks: the model's own parameters that the method is
            there to train. replaced: all of its own that are trained.

    Raises:
        FieldError: a method that trains kernels of linear maps, or an axis that has no blocks of such a size.
        UserError: a pattern of `skip_modules` that matches no linear map.
    """
    kind, most = method.base_dtype, method.base_block
    if most < 2 or most % 2:
        raise FieldError("peft.base_block", most, "expected an even number, as 64")
    maps = [t for t in targets if t.num_in is not None and not _is_output(method, t)]
    if method.skip_modules:
        kept = choose(maps, method.skip_modules, lambda t: True, "a linear map", "peft.skip_modules")
        maps = [t for t in maps if t not in kept]
    if trained := [t.name for t in maps if f"{t.name}/{KERNEL}" in picks]:
        told = f"{type(method).__name__}() trains {trained[0]}/{KERNEL} itself, and what is trained is in floats"
        raise FieldError("peft.base_dtype", kind, f"{told}; use None, or a method that trains beside it, as LoRA()")
    found = {(*t.path, KERNEL): _blocks(kind, most, t) for t in maps if (*t.path, KERNEL) not in replaced}
    if not found:
        raise FieldError("peft.base_dtype", kind, "this model has no linear map to quantise; use 'bfloat16' or None")
    return found


def _is_output(method: Any, target: Target) -> bool:
    if method.skip_modules is not None:
        return False
    return VOCAB in target.parameters[KERNEL].axes or target.path[-1] in HEADS


def _blocks(kind: str, most: int, target: Target) -> Blocks:
    assert target.num_in is not None
    kernel, axis = target.parameters[KERNEL], target.num_in - 1
    shape, axes = kernel.shape[target.layers :], kernel.axes[target.layers :]
    size = block_size(shape[axis], most)
    if size is None:
        told = f"{target.name}/{KERNEL} has {shape[axis]} {axes[axis] or 'inputs'} in a row, which no even number from"
        told = f"{told} {min(SMALLEST, most)} to {most} divides; leave it as it is, with peft.skip_modules"
        raise FieldError("peft.base_block", most, told)
    return Blocks(kind, axis - len(shape), size, str(kernel.dtype), _computed(target), axes)


def _computed(target: Target) -> str:
    """The dtype that a module computes with: of a policy, or of Flax's field `dtype`, or else that of its kernel."""
    policy, dtype = target.fields.get("policy"), target.fields.get("dtype")
    if isinstance(policy, Policy):
        dtype = policy.operand_dtype
    return str(jnp.dtype(dtype or target.parameters[KERNEL].dtype))
