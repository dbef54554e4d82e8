"""Loss, perplexity and bits per byte of a language model over a split."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np


def make_eval_step(apply: Callable, objective: Any) -> Callable:
    """(params, batch) -> {"nll", "loss", "weight"}: sums over the batch, with dropout off. To be jitted."""

    def step(params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        loss, weight, extra = objective.loss(apply, params, batch, None)
        return {"loss": loss, "weight": weight, **extra}

    return step


def evaluate(
    eval_step: Callable,
    params: Any,
    batches: Iterable[dict[str, Any]],
    bytes_per_token: float,
    progress: Callable[[int], Any] = lambda done: None,
) -> dict[str, float]:
    """Token means over all batches: padding has weight 0, and the sums are divided once.

    Args:
        eval_step: from `make_eval_step`, jitted. batches: device batches.
        bytes_per_token: of the split's text over the split's targets; with every batch of
            the split, bits per byte is exact.

    Returns:
        `loss` (nats a token), `perplexity`, `bits_per_byte`, `tokens`.
    """
    sums: dict[str, float] = {"nll": 0.0, "weight": 0.0}
    for done, batch in enumerate(batches, 1):
        for name, x in eval_step(params, batch).items():
            sums[name] = sums.get(name, 0.0) + float(np.asarray(x))
        progress(done)
    if not sums["weight"]:
        raise ValueError("evaluate: no batch had a token with weight")
    nll = sums["nll"] / sums["weight"]
    return {
        "loss": nll,
        "perplexity": math.exp(min(nll, 700.0)),
        "bits_per_byte": nll / math.log(2) / bytes_per_token,
        "tokens": sums["weight"],
    }
