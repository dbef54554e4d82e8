"""Sequence-to-sequence learning: predicts a target sequence from an input sequence (encoder-decoders).

Shape legend: B batch, S input length, T target length, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError
from jaxnlp.nn.losses import token_nll
from jaxnlp.objectives.objective import Metrics, Objective


@dataclasses.dataclass(kw_only=True)
class Seq2Seq(Objective):
    """Mean cross-entropy of each target token given the inputs and the preceding targets.

    label_smoothing: e; the target distribution is 1 - e on the label plus e spread evenly over the vocabulary (Szegedy
        et al. 2016, arXiv:1512.00567, section 7; Vaswani et al. 2017, section 5.4, uses 0.1).
    z_loss: weight of log(Z)^2, as in `CausalLM`.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def check(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise FieldError("label_smoothing", self.label_smoothing, "expected a fraction in [0, 1), for example 0.1")
        if self.z_loss < 0:
            raise FieldError("z_loss", self.z_loss, "expected 0 or more, for example 1e-4")

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch, as in `CausalLM.loss`.

        Args:
            apply: (params, inputs, tokens, input_segments=, segment_ids=, key=) -> logits_BTV.
            batch: `inputs`, `input_segments` (B, S); `tokens` (the decoder's input), `targets`, `segment_ids`,
                `weights` (B, T).

        Returns:
            (sum of losses in nats, sum of weights, metrics): "loss", without label smoothing and z-loss; "accuracy",
            the number of targets that were the most likely token.
        """
        arguments = {name: batch.get(name) for name in ("input_segments", "segment_ids")}
        logits_BTV = apply(params, batch["inputs"], batch["tokens"], **arguments, key=key)
        nll_BT, log_z_BT = token_nll(logits_BTV, batch["targets"], "vocab")
        weights_BT = batch["weights"]
        count = lambda x_BT: jnp.sum(jnp.where(weights_BT == 0, 0.0, x_BT * weights_BT))
        nll, smooth, loss_BT = count(nll_BT), self.label_smoothing, nll_BT
        if smooth:
            loss_BT = (1 - smooth) * nll_BT + smooth * (log_z_BT - logits_BTV.mean(-1))
        if self.z_loss:
            loss_BT = loss_BT + self.z_loss * jnp.square(log_z_BT)
        right = count((jnp.argmax(logits_BTV, -1) == batch["targets"]).astype(jnp.float32))
        return count(loss_BT), jnp.sum(weights_BT), {"loss": nll, "accuracy": right}
