"""Multi-adapter batching: several LoRA adapters in memory, and each row of a batch selects its own.

    adapters = stack_adapters([(tuning, tuned), (other_tuning, other_tuned)])
    run = jax.jit(adapters.tuning.apply(make_apply(module)))
    logits = run(adapters.params(base), tokens, adapter_ids=adapters.ids([0, 1, 1, -1]))

The ids are an argument of the call, like the tokens, so a jitted function serves any choice without recompilation.
`Generator.generate` and `beam_search` take `adapter_ids` too.

Shape legend: E adapters, B batch, R rank.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.peft.lora import A, B, LoRA
from jaxnlp.peft.tuning import TunedModel, checked_adapter_ids
from jaxnlp.trees import Params, Path, get_at, merge, set_at


@dataclasses.dataclass(frozen=True)
class MultiAdapter:
    """tuning: the model with all adapters. tuned: their parameters, each with an axis of E. num_adapters: E."""

    tuning: TunedModel
    tuned: Params
    num_adapters: int

    def params(self, base: Any) -> Any:
        """Base and adapters together, the first argument of `tuning.apply(...)`."""
        return merge(base, self.tuned)

    def ids(self, adapter_ids: Sequence[int]) -> jax.Array:
        """(B,) the adapter of each row of a batch; -1 selects the base. Checked here, since traced values cannot be.

        Raises:
            UserError: not a list of integers, or an id that is out of range.
        """
        return checked_adapter_ids(adapter_ids, self.num_adapters)


def stack_adapters(adapters: Sequence[tuple[TunedModel, Any]]) -> MultiAdapter:
    """Adapters of the same modules as one tree; ranks and scales may differ.

    Lower ranks are padded with zeros. The scale of each adapter is multiplied into its B.

    Args:
        adapters: pairs (tuning, tuned parameters).

    Raises:
        UserError: no adapters, a method that cannot be selected by row, or adapters of different modules.
    """
    if not adapters:
        raise UserError("stack_adapters: got no adapters; expected pairs (tuning, tuned)")
    methods = _methods(adapters)
    ranks = [method.rank for method in methods]
    widest = adapters[int(np.argmax(ranks))][0]
    tuned: Any = {}
    for path, target in widest.targets.items():
        pairs = [_padded(parameters, path, target.layers, max(ranks)) for _, parameters in adapters]
        for name, scales in ((A, [1.0] * len(pairs)), (B, [method.scale for method in methods])):
            stack = jnp.stack([pair[name] * by for pair, by in zip(pairs, scales, strict=True)], axis=target.layers)
            tuned = set_at(tuned, (*path, name), stack)
    plain = dataclasses.replace(methods[0], rank=max(ranks), alpha=float(max(ranks)), use_rslora=False)
    tuning = dataclasses.replace(widest, method=plain, num_adapters=len(adapters))
    return MultiAdapter(tuning, tuned, len(adapters))


def _methods(adapters: Sequence[tuple[TunedModel, Any]]) -> list[LoRA]:
    """The method of each adapter. Raises UserError if they cannot be stacked."""
    methods: list[LoRA] = []
    for tuning, _ in adapters:
        method = tuning.method
        if not isinstance(method, LoRA) or method.use_dora or tuning.replaced:
            raise UserError(
                f"stack_adapters: {type(method).__name__}() cannot be selected by row; expected LoRA() without DoRA "
                "and without fully trained parameters"
            )
        methods.append(method)
    reference = adapters[0][0]
    for i, (tuning, _) in enumerate(adapters):
        different = sorted("/".join(path) for path in tuning.leaves.keys() ^ reference.leaves.keys())
        if different:
            raise UserError(
                f"stack_adapters: adapters 0 and {i} have different targets: only one of them has {different[0]}"
            )
        if methods[i].tied != methods[0].tied:
            raise UserError(f"stack_adapters: adapters 0 and {i} differ in LoRA(tied=...); use one value for all")
    return methods


def _padded(tuned: Any, path: Path, layers: int, rank: int) -> dict[str, jax.Array]:
    """A and B of a module at rank R: A is padded on its last axis, B on the first after those of stacked layers."""
    a, b = get_at(tuned, (*path, A)), get_at(tuned, (*path, B))
    padding = rank - a.shape[-1]
    pad = lambda x, axis: jnp.pad(x, [(0, padding if i == axis else 0) for i in range(x.ndim)])
    return {A: pad(a, a.ndim - 1), B: pad(b, layers)}
