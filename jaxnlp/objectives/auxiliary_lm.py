"""Objectives on one label per example, with an auxiliary language-model loss on its tokens, as in GPT.

Radford et al. 2018, section 3.2, equation 5: L3 = L2 + lambda L1. Here L2 is a mean over examples and L1 a mean over
tokens.

Shape legend: B batch, C sequences per example, T length, V vocabulary.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.losses import token_nll, weighted_sum
from jaxnlp.objectives.objective import Metrics, Objective, head_logits


@dataclasses.dataclass(kw_only=True)
class ObjectiveWithLM(Objective):
    """Base class: the mean loss of a task, plus lm_weight times the mean language-model loss of the tokens.

    Subclasses define `task_loss`.

    lm_weight: lambda in equation 5; GPT uses 0.5. Needs a decoder, and a task whose examples have `lm_targets`.
    """

    predicts_tokens: ClassVar[bool] = False

    lm_weight: float = 0.0

    def check(self) -> None:
        if not self.lm_weight >= 0:
            raise FieldError("lm_weight", self.lm_weight, "expected 0 or more, for example 0.5")

    @abc.abstractmethod
    def task_loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        """(sum of losses over examples, metrics), with "loss" among the metrics: the sum without regularisers."""

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Adds `lm_shares`, token weights scaled so that dividing by the examples' weight gives both means.

        Call it on the full batch: the result does not depend on how the batch is split into microbatches. If lm_weight
        is 0, the batch is returned unchanged.

        Raises:
            UserError: lm_weight is positive and the batch has no `lm_targets`.
        """
        if not self.lm_weight:
            return batch
        if "lm_targets" not in batch:
            raise UserError(
                f"objective.lm_weight={self.lm_weight}: these examples have no targets of a language model; let "
                "data.task make them, or set it to 0"
            )
        share = jnp.sum(batch["weights"]) / jnp.maximum(jnp.sum(batch["lm_weights"]), 1.0)
        return {**batch, "lm_shares": self.lm_weight * share * batch["lm_weights"]}

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch that `prepare` has processed.

        Args:
            apply: (params, tokens, token_type_ids=, segment_ids=, pool_positions=, key=) -> {"logits": as `task_loss`
                reads them}, with "lm" logits if the model is a decoder.
            batch: `tokens`, `token_type_ids`, `segment_ids` (B, C, T); `pool_positions` (B, C); `labels` and `weights`
                (B,).

        Returns:
            (sum of losses, number of examples, metrics): the metrics of `task_loss`, and "lm_loss" with its number of
            tokens.
        """
        arguments = {name: batch.get(name) for name in ("token_type_ids", "segment_ids", "pool_positions")}
        out = apply(params, batch["tokens"], **arguments, key=key)
        total, metrics = self.task_loss(head_logits(out), batch)
        lm_total, lm_metrics = lm_loss(out, batch)
        return total + lm_total, jnp.sum(batch["weights"]), {**lm_metrics, **metrics}


def lm_loss(out: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[Any, Metrics]:
    """The term to add to the sum over examples, in nats, and the metric "lm_loss" with its number of tokens.

    Returns (0, {}) if the batch has no `lm_shares`, which `prepare` adds.

    Args:
        out: the model's output, with `lm` logits (B, C, T, V).
        batch: with `lm_targets`, `lm_weights`, `lm_shares` (B, C, T).

    Raises:
        UserError: the output has no `lm` logits.
    """
    if "lm_shares" not in batch:
        return 0.0, {}
    if "lm" not in out:
        raise UserError("objective.lm_weight: the body is not a language model; use a decoder, or set it to 0")
    nll_BCT, _ = token_nll(out["lm"], batch["lm_targets"], "vocab")
    weights_BCT = batch["lm_weights"]
    mean = (weighted_sum(nll_BCT, weights_BCT), jnp.sum(weights_BCT))
    return weighted_sum(nll_BCT, batch["lm_shares"]), {"lm_loss": mean}
