"""Token classification: predicts the class of each word of a text.

Shape legend: B batch, T length, N classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnlp.nn.losses import token_nll, weighted_sum
from jaxnlp.objectives.classification_metrics import class_scores, class_sums
from jaxnlp.objectives.objective import Metrics, Objective, head_logits


@dataclasses.dataclass(kw_only=True)
class TokenClassification(Objective):
    """Mean cross-entropy over labelled tokens: the first token of each word (Devlin et al. 2019, section 5.3)."""

    predicts_tokens: ClassVar[bool] = False

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch.

        Args:
            apply: (params, tokens, token_type_ids=, segment_ids=, key=) -> {"logits": (B, T, N)}.
            batch: `tokens`, `token_type_ids`, `segment_ids`, `labels`, `weights` (B, T); the weight is 1 on labelled
                tokens.

        Returns:
            (sum in nats, number of labels, metrics): "accuracy"; "classes" (3, N), the counts of
            `classification_metrics.class_sums`.
        """
        arguments = {name: batch.get(name) for name in ("token_type_ids", "segment_ids")}
        logits_BTN = head_logits(apply(params, batch["tokens"], **arguments, key=key))
        labels_BT, weights_BT = batch["labels"], batch["weights"]
        nll_BT, _ = token_nll(logits_BTN, labels_BT)
        nll = weighted_sum(nll_BT, weights_BT)
        right = weighted_sum(jnp.argmax(logits_BTN, -1) == labels_BT, weights_BT)
        sums = class_sums(logits_BTN, labels_BT, weights_BT)
        return nll, jnp.sum(weights_BT), {"accuracy": right, "classes": sums}

    def finalize_metrics(self, metrics: Metrics) -> Metrics:
        """As in `SequenceClassification.finalize_metrics`."""
        scores = class_scores(metrics["classes"])
        return {name: x for name, x in metrics.items() if name != "classes"} | scores
