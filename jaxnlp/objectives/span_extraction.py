"""Span extraction: predicts the span of a text that answers a question (extractive question answering).

Shape legend: B batch, T length.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxnlp.nn.losses import token_nll, weighted_sum
from jaxnlp.objectives.objective import Metrics, Objective, head_logits


@dataclasses.dataclass(kw_only=True)
class SpanExtraction(Objective):
    """Mean of the cross-entropies of the span's start and end, each over the positions where an answer is allowed.

    Devlin et al. 2019, sections 4.2 and 4.3. For a question without an answer, the span is the [CLS] token.
    """

    predicts_tokens: ClassVar[bool] = False

    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a batch.

        Args:
            apply: (params, tokens, token_type_ids=, segment_ids=, key=) -> {"logits": (B, T, 2)}.
            batch: `tokens`, `token_type_ids`, `segment_ids` (B, T); `starts`, `ends` (B,) positions; `answer_mask`
                (B, T), positive where a span may start or end; `weights` (B,).

        Returns:
            (sum in nats, number of examples, metrics): "start_accuracy", "end_accuracy", and "accuracy", where both
            are correct. Start and end are the most likely positions, taken independently; predicted answers are the
            best pair instead (`data/tasks/span_extraction.py`).
        """
        arguments = {name: batch.get(name) for name in ("token_type_ids", "segment_ids")}
        logits_BT2 = head_logits(apply(params, batch["tokens"], **arguments, key=key))
        logits_BT2 = jnp.where(batch["answer_mask"][..., None] > 0, logits_BT2, -1e9)
        weights_B = batch["weights"]
        count = lambda x_B: weighted_sum(x_B, weights_B)
        nll_B, right = 0.0, []
        for i, name in enumerate(("starts", "ends")):
            nll_B = nll_B + token_nll(logits_BT2[..., i], batch[name])[0] / 2
            right.append(jnp.argmax(logits_BT2[..., i], -1) == batch[name])
        nll = count(nll_B)
        metrics = {"start_accuracy": count(right[0]), "end_accuracy": count(right[1])}
        return nll, jnp.sum(weights_B), {**metrics, "accuracy": count(right[0] & right[1])}
