"""Bidirectional language modelling: the next and the previous word, as in ELMo.

Shape legend: B batch, T length, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnlp.nn.losses import token_nll
from jaxnlp.objectives.objective import Metrics, Objective


@dataclasses.dataclass(kw_only=True)
class BiLM(Objective):
    """Mean cross-entropy of a forward and a backward language model, trained jointly.

    Peters et al. 2018, arXiv:1802.05365, section 3.1. Each direction predicts every word once, so the mean of the two
    is in nats per word and comparable with `CausalLM`.
    """

    reports_bits_per_byte: ClassVar[bool] = True

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch, as in `CausalLM.loss`.

        Args:
            apply: (params, tokens, segment_ids=, key=) -> {"forward", "backward": logits_BTV}.
            batch: from the task `data.text.characters.Characters`.

        Returns:
            (loss, weight, metrics): half the sum over both directions, in nats; half the sum of their weights;
            "forward_nll" and "backward_nll", each paired with its own weight.
        """
        out = apply(params, batch["tokens"], segment_ids=batch["segment_ids"], key=key)
        metrics: dict[str, Any] = {}
        for way in ("forward", "backward"):
            nll_BT, _ = token_nll(out[way], batch[f"{way}_targets"], "vocab")
            weights_BT = batch[f"{way}_weights"]
            # Avoids 0 * inf: an unweighted target may have probability 0.
            nll = jnp.sum(jnp.where(weights_BT == 0, 0.0, nll_BT * weights_BT))
            metrics[f"{way}_nll"] = (nll, jnp.sum(weights_BT))
        total, weight = (sum(pair) / 2 for pair in zip(*metrics.values(), strict=True))
        return total, weight, metrics

    def describe_metrics(self, metrics: dict[str, float]) -> list[str]:
        ways = (f"{way} {metrics[f'{way}_nll']:.4f}" for way in ("forward", "backward"))
        return [f"the mean of two directions: {', '.join(ways)} nats/token"]
