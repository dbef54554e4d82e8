"""Sequence regression: predicts a number for a text or a pair of texts.

Shape legend: B batch.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxnlp.nn.losses import weighted_sum
from jaxnlp.objectives.auxiliary_lm import ObjectiveWithLM
from jaxnlp.objectives.objective import Metrics


@dataclasses.dataclass(kw_only=True)
class Regression(ObjectiveWithLM):
    """Mean squared error, plus lm_weight times the mean language-model loss of the tokens.

    lm_weight: lambda in `auxiliary_lm.py`. Needs a decoder, and a task whose examples have `lm_targets`.
    """

    loss_unit: ClassVar[str] = "squared error"

    def task_loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        """Sums over a batch.

        Args:
            logits: (B,), the predictions.
            batch: `labels` (B,) float32, `weights` (B,).

        Returns:
            (sum of squared errors, metrics): "loss"; "moments" (5,), the sums of x, y, x^2, y^2 and x y over
            predictions x and labels y, from which `finalize_metrics` computes the correlation.
        """
        x_B, y_B, weights_B = logits, batch["labels"].astype(jnp.float32), batch["weights"]
        count = lambda z_B: weighted_sum(z_B, weights_B)
        squares = count(jnp.square(x_B - y_B))
        moments = jnp.stack([count(z_B) for z_B in (x_B, y_B, x_B * x_B, y_B * y_B, x_B * y_B)])
        return squares, {"loss": squares, "moments": moments}

    def finalize_metrics(self, metrics: Metrics) -> Metrics:
        """Replaces "moments" by "pearson", the correlation of predictions and labels; 0 if either is constant."""
        x, y, xx, yy, xy = metrics["moments"]
        x_spread, y_spread = xx - x * x, yy - y * y
        varied = x_spread > 1e-6 * xx and y_spread > 1e-6 * yy  # the resolution of float32 sums
        pearson = float((xy - x * y) / (x_spread * y_spread) ** 0.5) if varied else 0.0
        return {name: value for name, value in metrics.items() if name != "moments"} | {"pearson": pearson}
