"""F1 and Matthews correlation from accumulated per-class counts.

Shape legend: N classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def class_sums(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted per-class counts (3, N): true positives, predictions and labels of each class.

    Args:
        logits: (..., N). labels: (...) integers. weights: (...).
    """
    hot = lambda x: jax.nn.one_hot(x, logits.shape[-1]) * weights[..., None]
    predicted, true = hot(jnp.argmax(logits, -1)), hot(labels)
    hits = predicted * (labels == jnp.argmax(logits, -1))[..., None]
    return jnp.stack([x.reshape(-1, x.shape[-1]).sum(0) for x in (hits, predicted, true)])


def class_scores(sums: Any) -> dict[str, float]:
    """Classification scores from the counts of `class_sums` over a full split.

    The scores do not change if all counts are scaled by one factor.

    Returns:
        f1_macro: mean F1 over classes; a class that is never predicted and never a label counts as 0.
        f1, precision, recall: of class 1; only with two classes.
        matthews: correlation of predictions and labels (Matthews 1975; Gorodkin 2004 for more than two classes); 0 if
            either is constant.
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
    # If one side is constant, the spread is zero up to rounding.
    scores["matthews"] = float(covariance / spread**0.5) if spread > 1e-9 * total**4 else 0.0
    return scores
