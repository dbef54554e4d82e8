"""The base class of training objectives, and the division of summed metrics.

An objective returns sums; the train step divides once, after all microbatches and devices.
"""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import jax

from jaxnlp.errors import UserError

Metrics = dict[str, Any]
IN_TABLE = {
    "loss",
    "accuracy",
    "tokens",
    "perplexity",
    "bits_per_byte",
}  # shown in the table of a report, or derived from its values


@dataclasses.dataclass(kw_only=True)
class Objective(abc.ABC):
    """Base class of training objectives. Subclasses define `loss`; the other methods have defaults.

    reports_bits_per_byte: whether every token of the text is predicted once, so that the loss converts to bits per
        byte.
    loss_unit: the unit of the loss.
    predicts_tokens: whether the loss is over tokens of text. If so and its unit is "nats", the perplexity is also
        reported.
    """

    reports_bits_per_byte: ClassVar[bool] = False
    loss_unit: ClassVar[str] = "nats"
    predicts_tokens: ClassVar[bool] = True

    @abc.abstractmethod
    def loss(
        self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None
    ) -> tuple[Any, Any, Metrics]:
        """Sums over a (micro)batch that `prepare` has processed.

        Args:
            apply: the model, called as apply(params, *arrays, key=key).
            key: for dropout; None disables it.

        Returns:
            (sum of losses, sum of weights, metrics). A metric is a sum to be divided by the sum of weights, or a pair
            (sum, its own weight). `metrics["loss"]`, if present, is the sum of losses without regularisers, which
            evaluations report; by default they report the loss itself. A metric that is an array is an input of
            `finalize_metrics` and is not written to the training log.
        """

    def prepare(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The batch as `loss` expects it. Called once on the full batch, before it is split into microbatches.

        Objectives with several terms rescale their weights here, so that a single division normalises all terms."""
        return batch

    def finalize_metrics(self, metrics: Metrics) -> Metrics:
        """Metrics to report, computed from the means over a split: replaces arrays by scores that are not means."""
        return metrics

    def describe_metrics(self, metrics: dict[str, float]) -> list[str]:
        """Lines below the table of a run's report: by default all metrics that the table does not have."""
        other_names = sorted(set(metrics) - IN_TABLE)
        return (
            [", ".join(f"{name.replace('_', ' ')} {metrics[name]:.4f}" for name in other_names)] if other_names else []
        )


def head_logits(out: dict[str, jax.Array]) -> jax.Array:
    """The output "logits" of a model with a head. Raises UserError for a model without one."""
    if "logits" not in out:
        names = ", ".join(sorted(out))
        raise UserError(f"model: has no output 'logits', only {names}; wrap it, as ModelWithHead(body=..., head=...)")
    return out["logits"]


@contextlib.contextmanager
def names_missing_array(objective: Objective, batch: Iterable[str], source: str, remedy: str) -> Iterator[None]:
    """Raises UserError in place of the KeyError of an objective that reads an array which the batch lacks.

    Args:
        batch: the names of its arrays. source: what made the batch. remedy: what to do.
    """
    try:
        yield
    except KeyError as error:
        names = sorted(batch)
        if not error.args or error.args[0] in names:
            raise
        raise UserError(
            f"objective={type(objective).__name__}(): reads the array {error.args[0]!r}, but {source} has only "
            f"{', '.join(names)}; {remedy}"
        ) from error


def means(metrics: Metrics, weight: Any) -> Metrics:
    """Each metric divided by its own weight, or by `weight` if it has none; 0 if that weight is 0."""

    def mean(value: Any) -> Any:
        total, count = value if isinstance(value, tuple) else (value, weight)
        return total / (count + (count == 0))

    return {name: mean(value) for name, value in metrics.items()}
