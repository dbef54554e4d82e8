"""Sequence regression: predicts a number for a text or a pair of texts.

Shape legend: B batch, C sequences per example, T length.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnlp.nn.losses import weighted_sum
from jaxnlp.objectives import auxiliary_lm
from jaxnlp.objectives.objective import Metrics, Objective


@dataclasses.dataclass(kw_only=True)
class Regression(Objective):
    """Mean squared error, plus lm_weight times the mean language-model loss of the tokens.

    lm_weight: lambda in `auxiliary_lm.py`. Needs a decoder, and a task whose examples have `lm_targets`.
    """

    loss_unit: ClassVar[str] = "squared error"
    lm_weight: float = 0.0

    def check(self) -> None:
        auxiliary_lm.check(self.lm_weight)

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return auxiliary_lm.prepare(batch, self.lm_weight)

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch that `prepare` has processed.

        Args:
            apply: (params, tokens, token_type_ids=, segment_ids=, pool_positions=, key=) -> {"logits": (B,)}, with "lm"
                logits if the model is a decoder.
            batch: `tokens`, `token_type_ids`, `segment_ids` (B, C, T); `pool_positions` (B, C); `labels` (B,) float32,
                `weights` (B,).

        Returns:
            (sum of squared errors, number of examples, metrics): "loss" without the language-model term; "lm_loss"
            with its number of tokens; "moments" (5,), the sums of x, y, x^2, y^2 and x y over predictions x and labels
            y, from which `finalize_metrics` computes the correlation.
        """
        arguments = {name: batch.get(name) for name in ("token_type_ids", "segment_ids", "pool_positions")}
        out = apply(params, batch["tokens"], **arguments, key=key)
        x_B, y_B, weights_B = out["logits"], batch["labels"].astype(jnp.float32), batch["weights"]
        count = lambda z_B: weighted_sum(z_B, weights_B)
        squares = count(jnp.square(x_B - y_B))
        more, metrics = auxiliary_lm.loss(out, batch)
        metrics["moments"] = jnp.stack([count(z_B) for z_B in (x_B, y_B, x_B * x_B, y_B * y_B, x_B * y_B)])
        return squares + more, jnp.sum(weights_B), {**metrics, "loss": squares}

    def finalize_metrics(self, metrics: Metrics) -> Metrics:
        """Replaces "moments" by "pearson", the correlation of predictions and labels; 0 if either is constant."""
        x, y, xx, yy, xy = metrics["moments"]
        x_spread, y_spread = xx - x * x, yy - y * y
        varied = x_spread > 1e-6 * xx and y_spread > 1e-6 * yy  # float32 sums resolve no less
        pearson = float((xy - x * y) / (x_spread * y_spread) ** 0.5) if varied else 0.0
        return {name: value for name, value in metrics.items() if name != "moments"} | {"pearson": pearson}
