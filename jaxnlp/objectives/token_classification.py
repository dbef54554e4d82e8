"""Naming the class of each word of a text: the objective of token classification.

Shape legend: B batch, T length, N classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.nn.losses import token_nll, weighted_sum
from jaxnlp.objectives.classification_metrics import class_scores, class_sums
from jaxnlp.objectives.objective import Metrics, Objective


@dataclasses.dataclass(kw_only=True)
class TokenClassification(Objective):
    """The mean cross-entropy over the places with a label: a word's first piece (Devlin et al. 2019, section 5.3)."""

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch.

        Args:
            apply: (params, tokens, types=, segment_ids=, key=) -> {"logits": (B, T, N)}.
            batch: `tokens`, `types`, `segment_ids`, `labels`, `weights` (B, T); the weight is 1 where there is a label.

        Returns:
            (sum in nats, number of labels, metrics): "accuracy" and "classes", the sums of `classes.py`.
        """
        given = {name: batch.get(name) for name in ("types", "segment_ids")}
        logits_BTN = apply(params, batch["tokens"], **given, key=key)["logits"]
        labels_BT, weights_BT = batch["labels"], batch["weights"]
        nll_BT, _ = token_nll(logits_BTN, labels_BT)
        nll = weighted_sum(nll_BT, weights_BT)
        right = weighted_sum(jnp.argmax(logits_BTN, -1) == labels_BT, weights_BT)
        sums = class_sums(logits_BTN, labels_BT, weights_BT)
        return nll, jnp.sum(weights_BT), {"accuracy": right, "classes": sums}

    def finalize_metrics(self, metrics: Metrics) -> Metrics:
        """As `SequenceClassification.finalize_metrics`."""
        scores = class_scores(metrics["classes"])
        return {name: x for name, x in metrics.items() if name != "classes"} | scores
