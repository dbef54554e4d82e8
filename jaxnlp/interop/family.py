"""Helpers to read fields of a config.json, shared by the families."""

from collections.abc import Mapping
from typing import Any

from jaxnlp.errors import UserError

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(hf: Mapping[str, Any], field: str, default: str) -> str:
    """Our name of a transformers activation. Raises UserError if it is not supported."""
    name = hf.get(field, default)
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: {field}={name!r} is not supported; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def activation_name(ours: str) -> str:
    """The transformers name of one of our activations."""
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def demand(hf: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises UserError if a field has another value than the one in `values`. A missing field passes."""
    for field, wanted in values.items():
        if hf.get(field, wanted) != wanted:
            raise UserError(f"config.json: {field}={hf[field]!r} is not supported; expected {wanted!r}")


def dropout(hf: Mapping[str, Any], fields: tuple[str, ...], default: float) -> float:
    """The common rate of several fields. Raises UserError if they differ."""
    rates = {field: hf.get(field, default) for field in fields}
    if len(set(rates.values())) > 1:
        given_rates = ", ".join(f"{field}={rate}" for field, rate in rates.items())
        raise UserError(
            f"config.json: {given_rates}: different rates are not supported; make them equal in config.json"
        )
    return rates[fields[0]]
