"""Scores of a classifier that are no means, from sums that are: F1 and Matthews correlation.

Shape legend: N classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def class_sums(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """(3, N) sums of weights for each class: where it was predicted rightly, predicted, and true.

    Args:
        logits: (..., N). labels: (...) integers. weights: (...).
    """
    hot = lambda x: jax.nn.one_hot(x, logits.shape[-1]) * weights[..., None]
    predicted, true = hot(jnp.argmax(logits, -1)), hot(labels)
    both = predicted * (labels == jnp.argmax(logits, -1))[..., None]
    return jnp.stack([x.reshape(-1, x.shape[-1]).sum(0) for x in (both, predicted, true)])


def class_scores(sums: Any) -> dict[str, float]:
    """The scores, from the sums over a whole split, or from any multiple of them.

    Returns:
        f1_macro: mean over classes of the harmonic mean of precision and recall, 0 for a class never predicted and
            never true. f1, precision, recall: of class 1, where there are two. matthews: the correlation of
            predictions and labels (Matthews 1975; Gorodkin 2004 for several classes), 0 where one of them is constant.
    """
    hit_N, predicted_N, true_N = np.asarray(sums, np.float64)
    over = lambda a, b: np.divide(a, b, out=np.zeros_like(a), where=b > 0)
    f1_N = over(2 * hit_N, predicted_N + true_N)
    scores = {"f1_macro": float(f1_N.mean())}
    if len(hit_N) == 2:
        precision, recall = over(hit_N, predicted_N)[1], over(hit_N, true_N)[1]
        scores |= {"f1": float(f1_N[1]), "precision": float(precision), "recall": float(recall)}
    total = true_N.sum()
    spread = (total**2 - (predicted_N**2).sum()) * (total**2 - (true_N**2).sum())
    covariance = hit_N.sum() * total - (predicted_N * true_N).sum()
    # A constant side has no spread but for rounding.
    scores["matthews"] = float(covariance / spread**0.5) if spread > 1e-9 * total**4 else 0.0
    return scores
