"""Scores of ranked candidates."""

from collections.abc import Sequence

import numpy as np

from jaxnlp.metrics.metric import Scores

TOP = (1, 3, 10)


def ranking(predictions: Sequence[Sequence[float]], references: Sequence[int]) -> Scores:
    """Accuracy among the k best (accuracy_at_k) and mean reciprocal rank.

    Ties count against the right candidate, so that a constant score ranks it last.

    Args:
        predictions: a score for each candidate, higher is better. references: the index of the right one.
    """
    ranks = [_rank(scores, right) for scores, right in zip(predictions, references, strict=True)]
    longest = max(map(len, predictions))
    accuracies = {f"accuracy_at_{k}": float(np.mean([rank <= k for rank in ranks])) for k in TOP if k < longest}
    return {**accuracies, "mean_reciprocal_rank": float(np.mean([1 / rank for rank in ranks]))}


def _rank(scores: Sequence[float], right: int) -> int:
    """From 1: the candidates that score no less than the right one."""
    return int(np.sum(np.asarray(scores) >= scores[right]))
