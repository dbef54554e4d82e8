"""Multiple choice: a softmax over the options of each question.

Shape legend: B batch, C options, T length.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxnlp.nn.losses import token_nll, weighted_sum
from jaxnlp.objectives.auxiliary_lm import ObjectiveWithLM
from jaxnlp.objectives.objective import Metrics


@dataclasses.dataclass(kw_only=True)
class MultipleChoice(ObjectiveWithLM):
    """Mean cross-entropy of the correct option, plus lm_weight times the mean language-model loss of the tokens.

    Devlin et al. 2019, section 4.4; Radford et al. 2018, section 3.3.

    lm_weight: lambda in `auxiliary_lm.py`. Needs a decoder, and a task whose examples have `lm_targets`.
    """

    def task_loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        """Sums over a batch.

        Args:
            logits: (B, C).
            batch: `segment_ids` (B, C, T), where an option without tokens is padding; `labels` (B,), the index of the
                correct option; `weights` (B,).

        Returns:
            (sum in nats, metrics): "loss" and "accuracy".
        """
        logits_BC, labels_B, weights_B = logits, batch["labels"], batch["weights"]
        if batch.get("segment_ids") is not None:  # some questions have fewer options
            logits_BC = jnp.where((batch["segment_ids"] != 0).any(-1), logits_BC, -1e9)
        nll_B, _ = token_nll(logits_BC, labels_B)
        nll, right = weighted_sum(nll_B, weights_B), weighted_sum(jnp.argmax(logits_BC, -1) == labels_B, weights_B)
        return nll, {"loss": nll, "accuracy": right}
