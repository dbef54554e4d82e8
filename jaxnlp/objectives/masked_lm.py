"""Masked language modelling with optional next-sentence prediction, as in BERT.

Shape legend: B batch, T length, M predicted positions, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.errors import UserError
from jaxnlp.nn.losses import token_nll
from jaxnlp.objectives.objective import Metrics, Objective


@dataclasses.dataclass(kw_only=True)
class MaskedLM(Objective):
    """Mean cross-entropy of the masked tokens, plus that of next-sentence prediction if the batch has sentence pairs.

    Devlin et al. 2019, arXiv:1810.04805, section 3.1 and appendix A.2. Logits are computed only at the masked
    positions; with 15% masked this is about a seventh of the work.
    """

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Adds `pair_shares`, pair weights scaled so that dividing by the tokens' weight gives both means."""
        if "pair_weights" not in batch:
            return batch
        share = jnp.sum(batch["weights"]) / jnp.maximum(jnp.sum(batch["pair_weights"]), 1.0)
        return {**batch, "pair_shares": share * batch["pair_weights"]}

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch that `prepare` has processed.

        Args:
            apply: (params, tokens, token_type_ids=, segment_ids=, masked_positions=, key=) -> {"masked_lm":
                logits_BMV}, with "next_sentence": logits_B2 if the batch has sentence pairs.
            batch: from the task `data.text.masking.Masked`.

        Returns:
            (sum in nats, number of masked tokens, metrics): "loss" and "accuracy" of the masked tokens; with sentence
            pairs also "next_sentence_loss" and "next_sentence_accuracy", each paired with the number of pairs.

        Raises:
            UserError: the model lacks a head that the batch needs, or has one that the batch does not train.
        """
        arguments = {name: batch[name] for name in ("token_type_ids", "segment_ids", "masked_positions")}
        out = apply(params, batch["tokens"], **arguments, key=key)
        pairs = "next_sentence" in batch
        if "masked_lm" not in out or ("next_sentence" in out) != pairs:
            heads = '("masked_lm", "next_sentence")' if pairs else '("masked_lm",)'
            raise UserError(f"model.heads: the examples train the heads {heads}; set model.heads to these")
        weights_BM = batch["weights"]
        nll_BM, _ = token_nll(out["masked_lm"], batch["targets"], "vocab")
        nll = total = jnp.sum(nll_BM * weights_BM)
        hit_BM = jnp.argmax(out["masked_lm"], -1) == batch["targets"]
        metrics: dict[str, Any] = {"loss": nll, "accuracy": jnp.sum(hit_BM * weights_BM)}
        if pairs:
            logits_B2, labels_B, weights_B = out["next_sentence"], batch["next_sentence"], batch["pair_weights"]
            nll_B, _ = token_nll(logits_B2, labels_B)
            total = total + jnp.sum(nll_B * batch["pair_shares"])
            count = jnp.sum(weights_B)
            metrics["next_sentence_loss"] = (jnp.sum(nll_B * weights_B), count)
            metrics["next_sentence_accuracy"] = (jnp.sum((jnp.argmax(logits_B2, -1) == labels_B) * weights_B), count)
        return total, jnp.sum(weights_BM), metrics

    def describe_metrics(self, metrics: dict[str, float]) -> list[str]:
        if "next_sentence_accuracy" not in metrics:
            return []
        return [f"next sentence: {metrics['next_sentence_accuracy']:.2%} right (chance: 50%)"]
