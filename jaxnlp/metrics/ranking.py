"""Metrics of ranked candidates."""

from collections.abc import Sequence

import numpy as np

from jaxnlp.metrics.metric import Scores

TOP = (1, 3, 10)


def ranking(predictions: Sequence[Sequence[float]], references: Sequence[int | Sequence[int]]) -> Scores:
    """Accuracy, mean reciprocal rank and recall@k, in [0, 1].

    `accuracy` is the share of examples whose best candidate is correct. `mean_reciprocal_rank` is the mean of 1 / rank
    of the first correct candidate. `recall_at_k` is the share of an example's correct candidates among its k best; k
    takes the values of `TOP` that are smaller than the largest number of candidates.
    Ties count against the correct candidate, so that a constant score ranks it last.

    Args:
        predictions: for each example, a score per candidate; higher is better.
        references: for each example, the index of the correct candidate, or the indices of several.
    """
    ranks = [_ranks(scores, correct) for scores, correct in zip(predictions, references, strict=True)]
    longest = max(map(len, predictions))
    mean = lambda values: float(np.mean(values))
    recalls = {f"recall_at_{k}": mean([np.mean(rank <= k) for rank in ranks]) for k in TOP if k < longest}
    firsts = np.array([rank.min() for rank in ranks])
    return {"accuracy": mean(firsts == 1), "mean_reciprocal_rank": mean(1 / firsts), **recalls}


def _ranks(scores: Sequence[float], correct: int | Sequence[int]) -> np.ndarray:
    """The ranks of the correct candidates, from 1: for each the number of candidates that score no less."""
    array = np.asarray(scores)
    return np.array([np.sum(array >= array[index]) for index in np.atleast_1d(correct)])
