"""Several LoRA adapters in memory at once, of which each row of a batch takes its own: a server of many tenants.

    residents = resident([(tuning, tuned), (other, other_tuned)])
    run = jax.jit(residents.tuning.apply(make_apply(module)))
    logits = run(residents.params(base, [0, 1, 1, -1]), tokens)

Which row takes which is a leaf of the parameters, an argument of whatever is jitted, as `Generator` is: another choice
is no other program. Shape legend: E adapters, B batch, R rank.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnlp.errors import UserError
from jaxnlp.nn.interceptors import ROWS
from jaxnlp.peft.lora import A, B, LoRA
from jaxnlp.peft.tuning import TunedModel
from jaxnlp.trees import Path, get_at, merge, set_at


@dataclasses.dataclass(frozen=True)
class Residents:
    """tuning: a plan that serves them all. tuned: their parameters, E of each. count: E."""

    tuning: TunedModel
    tuned: Any
    count: int

    def params(self, base: Any, ids_B: Any) -> Any:
        """Base and adapters together, and which of these each row of a batch takes; -1: none, the base.

        Raises:
            UserError: ids that are no list of whole numbers, or of no adapter.
        """
        ids = jnp.asarray(ids_B)
        if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise UserError(f"adapters of rows: {ids_B!r}; expected one whole number for each row of the batch")
        if not isinstance(ids, Tracer):
            wrong = [i for i in np.asarray(ids).tolist() if not -1 <= i < self.count]
            if wrong:
                known = f"{self.count} adapters are resident: 0 to {self.count - 1}, or -1 for the base"
                raise UserError(f"adapters of rows: {wrong[0]} is none of them; {known}")
        return merge(base, {**self.tuned, ROWS: ids})


def resident(adapters: Sequence[tuple[TunedModel, Any]]) -> Residents:
    """Adapters of the same modules as one tree; ranks and scales may differ.

    A lower rank is filled up with zeros. The scale of each goes into its B.

    Args:
        adapters: pairs of a plan and its tuned parameters.

    Raises:
        UserError: none given, a method that cannot be chosen by row, or adapters of different modules.
    """
    if not adapters:
        raise UserError("resident: no adapters given; expected pairs (tuning, tuned)")
    methods: list[LoRA] = []
    for tuning, _ in adapters:
        method = tuning.method
        if not isinstance(method, LoRA) or method.dora or tuning.replaced:
            raise UserError(
                "resident: rows choose among low-rank updates only: LoRA() without dora, nothing trained whole"
            )
        methods.append(method)
    first, ranks = adapters[0][0], [method.rank for method in methods]
    for i, (tuning, _) in enumerate(adapters):
        odd = sorted("/".join(path) for path in tuning.leaves.keys() ^ first.leaves.keys())
        if odd:
            raise UserError(f"resident: adapters 0 and {i} are of different modules: {odd[0]} is in one of them alone")
        if methods[i].tied != methods[0].tied:
            raise UserError(f"resident: adapters 0 and {i} differ in LoRA(tied=...), what becomes of output maps")
    widest = adapters[int(np.argmax(ranks))][0]
    tuned: Any = {}
    for path, target in widest.targets.items():
        pairs = [_filled(one, path, target.layers, max(ranks)) for _, one in adapters]
        for name, scales in ((A, [1.0] * len(pairs)), (B, [method.scale for method in methods])):
            stack = jnp.stack([pair[name] * by for pair, by in zip(pairs, scales, strict=True)], axis=target.layers)
            tuned = set_at(tuned, (*path, name), stack)
    plain = dataclasses.replace(methods[0], rank=max(ranks), alpha=float(max(ranks)), rank_stabilized=False)
    return Residents(dataclasses.replace(widest, method=plain), tuned, len(adapters))


def _filled(tuned: Any, path: Path, layers: int, rank: int) -> dict[str, jax.Array]:
    """A and B of a module, of rank R at least: A's last axis, and B's first after those of stacked layers."""
    a, b = get_at(tuned, (*path, A)), get_at(tuned, (*path, B))
    more = rank - a.shape[-1]
    wide = lambda x, axis: jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])
    return {A: wide(a, a.ndim - 1), B: wide(b, layers)}
