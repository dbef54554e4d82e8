"""Multiple choice: a softmax over the options of each question.

Shape legend: B batch, C options, T length.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.nn.losses import token_nll, weighted_sum
from jaxnlp.objectives import auxiliary_lm
from jaxnlp.objectives.objective import Metrics, Objective


@dataclasses.dataclass(kw_only=True)
class MultipleChoice(Objective):
    """Mean cross-entropy of the correct option, plus lm_weight times the mean language-model loss of the tokens.

    Devlin et al. 2019, section 4.4; Radford et al. 2018, section 3.3.

    lm_weight: lambda in `auxiliary_lm.py`. Needs a decoder, and a task whose examples have `lm_targets`.
    """

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
            apply: (params, tokens, token_type_ids=, segment_ids=, pool_positions=, key=) -> {"logits": (B, C)}, with
                "lm" logits if the model is a decoder.
            batch: `tokens`, `token_type_ids`, `segment_ids` (B, C, T), where an option without tokens is padding;
                `pool_positions` (B, C); `labels` (B,), the index of the correct option; `weights` (B,).

        Returns:
            (sum in nats, number of examples, metrics): "loss" without the language-model term, "accuracy", and
            "lm_loss" with its number of tokens.
        """
        arguments = {name: batch.get(name) for name in ("token_type_ids", "segment_ids", "pool_positions")}
        out = apply(params, batch["tokens"], **arguments, key=key)
        logits_BC, labels_B, weights_B = out["logits"], batch["labels"], batch["weights"]
        if batch.get("segment_ids") is not None:  # questions with fewer options than others
            logits_BC = jnp.where((batch["segment_ids"] != 0).any(-1), logits_BC, -1e9)
        nll_B, _ = token_nll(logits_BC, labels_B)
        nll, right = weighted_sum(nll_B, weights_B), weighted_sum(jnp.argmax(logits_BC, -1) == labels_B, weights_B)
        more, metrics = auxiliary_lm.loss(out, batch)
        return nll + more, jnp.sum(weights_B), {**metrics, "loss": nll, "accuracy": right}
