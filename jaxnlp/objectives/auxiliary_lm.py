"""Auxiliary language-model loss for fine-tuning a decoder on a task, as in GPT.

Radford et al. 2018, section 3.2, equation 5: L3 = L2 + lambda L1. Here L2 is a mean over examples and L1 a mean over
tokens.

Shape legend: B batch, C sequences per example, T length, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.losses import token_nll, weighted_sum


def check(lm_weight: float) -> None:
    if not lm_weight >= 0:
        raise FieldError("lm_weight", lm_weight, "expected zero or more, as 0.5")


def prepare(batch: dict[str, jax.Array], lm_weight: float) -> dict[str, jax.Array]:
    """Adds `lm_shares`, token weights scaled so that dividing by the examples' weight gives both means.

    Call it on the full batch: the result does not depend on how the batch is split into microbatches.

    Args:
        lm_weight: lambda; at 0 the batch is returned unchanged.

    Raises:
        UserError: lm_weight is positive and the batch has no `lm_targets`.
    """
    if not lm_weight:
        return batch
    if "lm_targets" not in batch:
        raise UserError(
            f"objective.lm_weight={lm_weight}: these examples have no targets of a language model; let data.task "
            "make them, or set it to 0"
        )
    share = jnp.sum(batch["weights"]) / jnp.maximum(jnp.sum(batch["lm_weights"]), 1.0)
    return {**batch, "lm_shares": lm_weight * share * batch["lm_weights"]}


def loss(out: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[Any, dict[str, Any]]:
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
        raise UserError("objective.lm_weight: the trunk is no language model; use a decoder, or set it to 0")
    nll_BCT, _ = token_nll(out["lm"], batch["lm_targets"], "vocab")
    weights_BCT = batch["lm_weights"]
    mean = (weighted_sum(nll_BCT, weights_BCT), jnp.sum(weights_BCT))
    return weighted_sum(nll_BCT, batch["lm_shares"]), {"lm_loss": mean}
