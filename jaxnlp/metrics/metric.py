"""The type of metrics, loading metrics by name, and bootstrap intervals.

A metric is a function `(predictions, references) -> dict of floats` on the host. The metrics in this package import
their libraries when they are called, since some take seconds to import (seqeval).
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from jaxnlp.errors import UserError

Scores = dict[str, float]
Metric = Callable[[Sequence[Any], Sequence[Any]], Scores]


def metric_named(name: str) -> Metric:
    """Imports a metric "module:function", as "jaxnlp.metrics.generation:bleu". Raises UserError if it cannot."""
    module, _, function = name.partition(":")
    try:
        metric: Any = vars(importlib.import_module(module))[function]
    except (ImportError, ValueError, KeyError) as e:
        raise UserError(f"metric {name!r}: cannot be imported ({e}); expected module:function") from None
    if not callable(metric):
        raise UserError(
            f"metric {name!r}: expected a function of (predictions, references), got {type(metric).__name__}"
        )
    return cast(Metric, metric)


def bootstrap_interval(
    metric: Metric,
    predictions: Sequence[Any],
    references: Sequence[Any],
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of a metric's scores (Efron and Tibshirani 1993, section 13.3).

    Args:
        samples: number of resamples, each of len(predictions) pairs drawn with replacement.
        confidence: coverage probability of the interval.

    Returns:
        {score: (low, high)}.
    """
    random, size = np.random.default_rng(seed), len(predictions)
    resampled: dict[str, list[float]] = {}
    for _ in range(samples):
        indices = random.integers(size, size=size)
        scores = metric([predictions[i] for i in indices], [references[i] for i in indices])
        for name, score in scores.items():
            resampled.setdefault(name, []).append(score)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = {name: np.quantile(scores, tails) for name, scores in resampled.items()}
    return {name: (float(low), float(high)) for name, (low, high) in intervals.items()}
