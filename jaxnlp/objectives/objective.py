"""What an objective is, and how its sums become means.

An objective is a dataclass with

    loss(apply, params, batch, key) -> (sum, weight, metrics)

It returns sums; the train step divides once, after all microbatches and devices. A metric is a sum to be divided by
`weight`, or a pair (sum, its own weight). `metrics["nll"]` is the sum whose mean is the loss without regularisers. A
sum that is an array is there for `summary`, and left out of the training log.
It may have

    prepare(batch) -> batch      called once on the whole batch, before it is cut: where terms of different weights
                                 are brought to one
    summary(found) -> found      called on the means over a split, to make numbers of those that are arrays, or scores
                                 that are no means
    every_token                  False where it does not predict each token of a text once, so that there are no bits
                                 a byte
"""

from typing import Any


def prepared(objective: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as the objective's `loss` wants it."""
    return objective.prepare(batch) if hasattr(objective, "prepare") else batch


def summarised(objective: Any, found: dict[str, Any]) -> dict[str, float]:
    """Means over a split as what the objective makes of them."""
    return objective.summary(found) if hasattr(objective, "summary") else found


def means(metrics: dict[str, Any], weight: Any) -> dict[str, Any]:
    """Metrics, each divided by its own weight or by `weight`; one without any weight is 0."""

    def one(value: Any) -> Any:
        total, count = value if isinstance(value, tuple) else (value, weight)
        return total / (count + (count == 0))

    return {name: one(value) for name, value in metrics.items()}
