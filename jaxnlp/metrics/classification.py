"""Metrics of predicted classes and numbers: thin wrappers over scikit-learn and SciPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.metrics.metric import Scores


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Share of predictions that equal their reference, in [0, 1]."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score([*references], [*predictions]))}


def classification(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Accuracy, macro-averaged F1, micro-averaged F1, and Matthews correlation.

    Averages are over the classes that occur in the predictions or references.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef

    scores = accuracy(predictions, references)
    undefined: dict[str, Any] = {"zero_division": 0}
    for average in ("macro", "micro"):
        scores[f"f1_{average}"] = float(f1_score([*references], [*predictions], average=average, **undefined))
    return {**scores, "matthews": float(matthews_corrcoef([*references], [*predictions]))}


def correlation(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """Pearson and Spearman correlation, 0 if either side is constant, and the mean squared error."""
    from scipy.stats import pearsonr, spearmanr

    x, y = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    scores = {"pearson": 0.0, "spearman": 0.0, "mean_squared_error": float(np.square(x - y).mean())}
    if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
        tests: dict[str, Any] = {"pearson": pearsonr(x, y), "spearman": spearmanr(x, y)}
        scores |= {name: float(test.statistic) for name, test in tests.items()}
    return scores
