"""Sequence classification: predicts the class of a text or of several texts, e.g. entailment.

Shape legend: B batch, N classes.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn.losses import token_nll, weighted_sum
from jaxnlp.objectives.auxiliary_lm import ObjectiveWithLM
from jaxnlp.objectives.classification_metrics import class_scores, class_sums
from jaxnlp.objectives.objective import Metrics


@dataclasses.dataclass(kw_only=True)
class SequenceClassification(ObjectiveWithLM):
    """Mean cross-entropy of the labels, plus lm_weight times the mean language-model loss of the tokens.

    label_smoothing: as in `Seq2Seq`.
    lm_weight: lambda in `auxiliary_lm.py`; GPT uses 0.5. Needs a decoder, and a task whose examples have `lm_targets`.
    """

    label_smoothing: float = 0.0

    def check(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise FieldError("label_smoothing", self.label_smoothing, "expected a fraction in [0, 1), for example 0.1")
        super().check()

    def task_loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        """Sums over a batch.

        Args:
            logits: (B, N).
            batch: `labels` (B,) integers, `weights` (B,).

        Returns:
            (sum in nats, metrics): "loss" without label smoothing; "accuracy"; "classes" (3, N), the counts of
            `classification_metrics.class_sums`.
        """
        logits_BN, labels_B, weights_B = logits, batch["labels"], batch["weights"]
        nll_B, log_z_B = token_nll(logits_BN, labels_B)
        count = lambda x_B: weighted_sum(x_B, weights_B)
        loss_B, smooth = nll_B, self.label_smoothing
        if smooth:
            loss_B = (1 - smooth) * nll_B + smooth * (log_z_B - logits_BN.mean(-1))
        metrics: Metrics = {"loss": count(nll_B), "accuracy": count(jnp.argmax(logits_BN, -1) == labels_B)}
        metrics["classes"] = class_sums(logits_BN, labels_B, weights_B)
        return count(loss_B), metrics

    def finalize_metrics(self, metrics: Metrics) -> Metrics:
        """Replaces "classes" by the scores of `classification_metrics.class_scores`: F1 and Matthews correlation."""
        scores = class_scores(metrics["classes"])
        return {name: x for name, x in metrics.items() if name != "classes"} | scores
