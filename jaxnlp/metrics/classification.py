"""Scores of predicted classes and numbers: thin over scikit-learn and SciPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.metrics.metric import Scores


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> Scores:
    """Share of predictions that equal their reference."""
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score([*references], [*predictions]))}


def classification(predictions: Sequence[str], references: Sequence[str]) -> Scores:
    """Accuracy, F1 averaged over classes (macro) and over decisions (micro), and Matthews correlation.

    Averages are over the classes that occur among the predictions or references.
    """
    from sklearn.metrics import f1_score, matthews_corrcoef

    scores = accuracy(predictions, references)
    undefined: dict[str, Any] = {"zero_division": 0}
    for average in ("macro", "micro"):
        scores[f"f1_{average}"] = float(f1_score([*references], [*predictions], average=average, **undefined))
    return {**scores, "matthews": float(matthews_corrcoef([*references], [*predictions]))}


def correlation(predictions: Sequence[float], references: Sequence[float]) -> Scores:
    """Pearson's and Spearman's correlation, 0 where one side is constant, and the mean squared error."""
    from scipy.stats import pearsonr, spearmanr

    x, y = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    scores = {"pearson": 0.0, "spearman": 0.0, "mean_squared_error": float(np.square(x - y).mean())}
    if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0:
        tests: dict[str, Any] = {"pearson": pearsonr(x, y), "spearman": spearmanr(x, y)}
        scores |= {name: float(test.statistic) for name, test in tests.items()}
    return scores
