"""Sequence classification: predicts the class of a text or of several texts, e.g. entailment.

Shape legend: B batch, C sequences per example, T length, N classes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn.losses import token_nll, weighted_sum
from jaxnlp.objectives import auxiliary_lm
from jaxnlp.objectives.classification_metrics import class_scores, class_sums
from jaxnlp.objectives.objective import Metrics, Objective


@dataclasses.dataclass(kw_only=True)
class SequenceClassification(Objective):
    """Mean cross-entropy of the labels, plus lm_weight times the mean language-model loss of the tokens.

    label_smoothing: as in `Seq2Seq`.
    lm_weight: lambda in `auxiliary_lm.py`; GPT uses 0.5. Needs a decoder, and a task whose examples have `lm_targets`.
    """

    label_smoothing: float = 0.0
    lm_weight: float = 0.0

    def check(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise FieldError("label_smoothing", self.label_smoothing, "expected a share in [0, 1), as 0.1")
        auxiliary_lm.check(self.lm_weight)

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return auxiliary_lm.prepare(batch, self.lm_weight)

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch that `prepare` has processed.

        Args:
            apply: (params, tokens, token_type_ids=, segment_ids=, pool_positions=, key=) -> {"logits": (B, N)}, with
                "lm" logits if the model is a decoder.
            batch: `tokens`, `token_type_ids`, `segment_ids` (B, C, T); `pool_positions` (B, C); `labels` (B,) integers,
                `weights` (B,).

        Returns:
            (sum in nats, number of examples, metrics): "loss" without label smoothing and the language-model term;
            "accuracy"; "lm_loss" with its number of tokens; "classes" (3, N), the counts of
            `classification_metrics.class_sums`.
        """
        arguments = {name: batch.get(name) for name in ("token_type_ids", "segment_ids", "pool_positions")}
        out = apply(params, batch["tokens"], **arguments, key=key)
        logits_BN, labels_B, weights_B = out["logits"], batch["labels"], batch["weights"]
        nll_B, log_z_B = token_nll(logits_BN, labels_B)
        count = lambda x_B: weighted_sum(x_B, weights_B)
        loss_B, smooth = nll_B, self.label_smoothing
        if smooth:
            loss_B = (1 - smooth) * nll_B + smooth * (log_z_B - logits_BN.mean(-1))
        more, metrics = auxiliary_lm.loss(out, batch)
        metrics |= {"loss": count(nll_B), "accuracy": count(jnp.argmax(logits_BN, -1) == labels_B)}
        metrics["classes"] = class_sums(logits_BN, labels_B, weights_B)
        return count(loss_B) + more, jnp.sum(weights_B), metrics

    def finalize_metrics(self, metrics: Metrics) -> Metrics:
        """Replaces "classes" by the scores of `classification_metrics.class_scores`: F1 and Matthews correlation."""
        scores = class_scores(metrics["classes"])
        return {name: x for name, x in metrics.items() if name != "classes"} | scores
