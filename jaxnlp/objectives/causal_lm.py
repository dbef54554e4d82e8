"""Causal language modelling (next-token prediction), as in GPT.

Shape legend: B batch, T length, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn.losses import token_nll
from jaxnlp.objectives.objective import Metrics, Objective


@dataclasses.dataclass(kw_only=True)
class CausalLM(Objective):
    """Mean cross-entropy of each token given the preceding ones.

    z_loss: weight of log(Z)^2, which keeps the softmax normaliser near 1 (Chowdhery et al. 2022, section 5).
    """

    reports_bits_per_byte: ClassVar[bool] = True
    z_loss: float = 0.0

    def check(self) -> None:
        if self.z_loss < 0:
            raise FieldError("z_loss", self.z_loss, "expected 0 or more, for example 1e-4")

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch, to be divided after summing over all microbatches and devices.

        Args:
            apply: (params, tokens, segment_ids=, positions=, key=) -> logits_BTV.
            batch: `tokens` and `targets` (B, T) integers; `weights` (B, T) float32, 0 on padding. `segment_ids` and
                `positions` (B, T) are optional: without them, packed documents attend to each other.
            key: for dropout; None disables it.

        Returns:
            (sum of losses in nats, sum of weights, {"loss": sum without the z-loss}).
        """
        place = {"segment_ids": batch.get("segment_ids"), "positions": batch.get("positions")}
        logits_BTV = apply(params, batch["tokens"], **place, key=key)
        nll_BT, log_z_BT = token_nll(logits_BTV, batch["targets"], "vocab")
        weights_BT = batch["weights"]
        # Avoids 0 * inf: the target at a padding position may have probability 0.
        nll = jnp.sum(jnp.where(weights_BT == 0, 0.0, nll_BT * weights_BT))
        total = nll
        if self.z_loss:
            total = nll + self.z_loss * jnp.sum(jnp.square(log_z_BT) * weights_BT)
        return total, jnp.sum(weights_BT), {"loss": nll}
