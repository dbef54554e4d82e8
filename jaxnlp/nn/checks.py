"""Checks shared by several configs. Each raises FieldError for the first invalid field."""

from collections.abc import Iterator
from typing import Any

from jaxnlp.config import field_values
from jaxnlp.errors import FieldError


def values(config: Any, *fields: str) -> Iterator[tuple[str, Any]]:
    """(name, value) of each field."""
    yield from field_values(config, *fields).items()


def positive(config: Any, *fields: str) -> None:
    """Each field is None or at least 1."""
    for field, value in values(config, *fields):
        if value is not None and value < 1:
            raise FieldError(field, value, "expected a positive number")


def above_zero(config: Any, example: str, *fields: str) -> None:
    """Each field is None or a number above 0."""
    for field, value in values(config, *fields):
        if value is not None and not value > 0:
            raise FieldError(field, value, f"expected a positive number, as {example}, or None")


def rates(config: Any, *fields: str) -> None:
    """Each field is a probability below 1."""
    for field, value in values(config, *fields):
        if not 0 <= value < 1:
            raise FieldError(field, value, "expected a probability in [0, 1)")


def one_of(config: Any, field: str, choices: tuple[str, ...]) -> None:
    """The field is one of the choices."""
    for name, value in values(config, field):
        if value not in choices:
            raise FieldError(name, value, f"expected one of {', '.join(choices)}")


def heads(config: Any) -> None:
    """`num_heads` divides `embed_dim`, unless `head_dim` is given."""
    H, D = config.num_heads, config.embed_dim
    if config.head_dim is None and D % H:
        near = min((h for h in range(1, min(D, 4 * H, 1 << 16) + 1) if D % h == 0), key=lambda h: abs(h - H))
        raise FieldError("num_heads", H, f"does not divide embed_dim={D}; use {near}, or set head_dim")


def components(config: Any) -> None:
    """The attention kernel supports the config's dropout and position encoding."""
    kernel = f"attention={name(config.attention)}"
    if config.dropout_rate and "dropout" not in config.attention.features:
        raise FieldError(
            "dropout_rate", config.dropout_rate, f"{kernel} does not support dropout of the weights; use Einsum(), or 0"
        )
    if config.positions.biased and "bias" not in config.attention.features:
        raise FieldError("positions", name(config.positions), f"{kernel} does not support a bias; use Einsum()")


def name(component: Any) -> str:
    """A component's name as written in a config: `Einsum()`."""
    return f"{type(component).__name__}()"
