"""Loss, perplexity and the objective's own metrics over a split."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxnlp.objectives.objective import means, prepared, summarised


def make_eval_step(apply: Callable, objective: Any) -> Callable:
    """(params, batch) -> {"loss", "weight", and the objective's metrics}: sums, with dropout off. To be jitted."""

    def eval_step(params: Any, batch: dict[str, jax.Array]) -> dict[str, Any]:
        loss, weight, extra = objective.loss(apply, params, prepared(objective, batch), None)
        return {"loss": loss, "weight": weight, **extra}

    return eval_step


def evaluate(
    eval_step: Callable,
    params: Any,
    batches: Iterable[dict[str, Any]],
    bytes_per_token: float | None,
    progress: Callable[[int], Any] = lambda done: None,
    objective: Any = None,
) -> dict[str, float]:
    """Means over all batches: padding has weight 0, and the sums are divided once.

    Args:
        eval_step: from `make_eval_step`, jitted. batches: device batches.
        bytes_per_token: of the split's text over the split's targets; with every batch of the split, bits per byte is
            exact. None where targets are not the text.
        objective: whose metrics these are, if it has a `summary`.

    Returns:
        `loss` (nats a token), `perplexity`, `bits_per_byte` unless that is None, `tokens`, and what else the
        objective measures.
    """
    sums: Any = None
    for done, batch in enumerate(batches, 1):
        new = jax.tree.map(lambda x: np.asarray(x, np.float64), eval_step(params, batch))
        sums = new if sums is None else jax.tree.map(lambda a, b: a + b, sums, new)
        progress(done)
    if not sums or not sums["weight"]:
        raise ValueError("evaluate: no batch had a token with weight")
    weight = sums.pop("weight")
    found = means(sums, weight)
    nll = found.pop("nll")
    found["loss"] = nll
    found["perplexity"] = math.exp(min(nll, 700.0))
    if bytes_per_token is not None:
        found["bits_per_byte"] = nll / math.log(2) / bytes_per_token
    found = summarised(objective, {**found, "tokens": weight})
    return {name: float(x) for name, x in found.items()}
