"""Metrics of ranked candidates."""

from collections.abc import Sequence

import numpy as np

from jaxnlp.metrics.metric import Scores

TOP = (1, 3, 10)


def ranking(predictions: Sequence[Sequence[float]], references: Sequence[int]) -> Scores:
    """Top-k accuracy (accuracy_at_k) and mean reciprocal rank, in [0, 1].

    k takes the values of `TOP` that are smaller than the largest number of candidates.
    Ties count against the correct candidate, so that a constant score ranks it last.

    Args:
        predictions: for each example, a score per candidate; higher is better.
        references: for each example, the index of the correct candidate.
    """
    ranks = [_rank(scores, right) for scores, right in zip(predictions, references, strict=True)]
    longest = max(map(len, predictions))
    accuracies = {f"accuracy_at_{k}": float(np.mean([rank <= k for rank in ranks])) for k in TOP if k < longest}
    return {**accuracies, "mean_reciprocal_rank": float(np.mean([1 / rank for rank in ranks]))}


def _rank(scores: Sequence[float], right: int) -> int:
    """The rank of the correct candidate, from 1: the number of candidates that score no less than it."""
    return int(np.sum(np.asarray(scores) >= scores[right]))
