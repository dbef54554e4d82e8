"""Rematerialisation policies: which activations are saved, offloaded or recomputed.

Chen et al. 2016, arXiv:1604.06174. Layers name their activations by `checkpoint_name`, at no cost.
Shape legend: B batch, T length, D model, H heads, K head size, F feed-forward.
"""

import dataclasses
from typing import Any

import jax

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.linear import PRODUCT

PLACES = ("query", "key", "value", "context", "attention_out", "mlp_hidden", "mlp_out")
"""query, key, value (B, T, H, K): inputs of the attention kernel. context (B, T, H, K): its output.
attention_out (B, T, D): output of the attention layer. mlp_hidden (B, T, F): output of the feed-forward layer's first
map, before the activation (two arrays if gated). mlp_out (B, T, D): output of the feed-forward layer."""

POLICIES = ("none", "full", "dots", "names", "offload")
INPUT = "block_input"  # the name of the input of a block in a pipeline stage
HOST = "pinned_host"
DEQUANTISED = "dequantised"  # the name of a quantised kernel's dequantised floats


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Remat:
    """Named activations to save or offload: `Remat(save=("query", "key", "value"), offload=("mlp_hidden",))`.

    A block's input is always saved. Activations named in neither field are recomputed.

    save: names saved in the device's memory.
    offload: names moved to pinned host memory, and back for the backward pass.
    """

    save: tuple[str, ...] = ()
    offload: tuple[str, ...] = ()

    def check(self) -> None:
        for field, places in (("save", self.save), ("offload", self.offload)):
            for place in places:
                if place not in PLACES:
                    raise FieldError(field, place, f"unknown activation; expected one of {', '.join(PLACES)}")
        for place in self.offload:
            if place in self.save:
                raise FieldError(
                    "offload",
                    place,
                    "is also in save; an activation is either saved or offloaded, so remove it from one of them",
                )


NAMES = Remat(save=("query", "key", "value", "context"))
OFFLOAD = Remat(offload=("query", "key", "value", "attention_out", "mlp_hidden"))


def check(config: Any) -> None:
    """Raises FieldError unless `config.remat` is the name of a policy or a `Remat`."""
    expected = f"expected one of {', '.join(POLICIES)}, or a Remat(save=..., offload=...)"
    if not isinstance(config.remat, Remat) and config.remat not in POLICIES:
        raise FieldError("remat", config.remat, expected)


def all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """The policy of remat="none" under ZeRO-3: gathered parameters are freed after use and gathered again.

    If they were saved, the full parameters of all layers would be in memory at once. `partitioning.py` gathers by a
    sharding constraint in a `custom_vjp`. Reshapes of gathered parameters and dequantised kernels (`quantised.py`) are
    not saved either.
    """
    body = params.get("call_jaxpr") if primitive.name == "custom_vjp_call" else None
    names = {primitive.name} if body is None else {eqn.primitive.name for eqn in body.eqns}
    floats = body is not None and any(eqn.params.get("name") == DEQUANTISED for eqn in body.eqns)
    return not (floats or names <= {"sharding_constraint", "reshape"})


def policy(remat: str | Remat, *names: str) -> Any:
    """The policy for `jax.checkpoint` of a block; None saves nothing within it. Not for "none".

    Args:
        names: names that are saved under every policy.

    Raises:
        UserError: the policy offloads activations, and this backend has no pinned host memory.
    """
    if remat == "full":
        return jax.checkpoint_policies.save_only_these_names(*names) if names else None
    if remat == "dots":
        return jax.checkpoint_policies.save_only_these_names(PRODUCT, *names)
    chosen = {"names": NAMES, "offload": OFFLOAD}.get(remat, remat) if isinstance(remat, str) else remat
    assert isinstance(chosen, Remat)
    if not chosen.offload:
        return jax.checkpoint_policies.save_only_these_names(*chosen.save, *names)
    device = jax.local_devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise UserError(
            f"remat={remat!r}: {device.platform} devices have no memory {HOST!r} (only {', '.join(kinds)}); "
            "use remat='names', or 'full'"
        )
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[*chosen.save, *names],
        names_which_can_be_offloaded=list(chosen.offload),
        offload_src="device",
        offload_dst=HOST,
    )
