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


def activation_name(activation: str) -> str:
    """The transformers name of one of our activations."""
    return next(hf_name for hf_name, our_name in ACTIVATIONS.items() if our_name == activation)


def demand(hf: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raises UserError if a field has another value than the one in `values`. A missing field passes."""
    for field, expected in values.items():
        if hf.get(field, expected) != expected:
            raise UserError(f"config.json: {field}={hf[field]!r} is not supported; expected {expected!r}")


def dropout(hf: Mapping[str, Any], fields: tuple[str, ...], default: float) -> float:
    """The common rate of several fields. Raises UserError if they differ."""
    rates = {field: hf.get(field, default) for field in fields}
    if len(set(rates.values())) > 1:
        listed = ", ".join(f"{field}={rate}" for field, rate in rates.items())
        raise UserError(
            f"config.json: {listed}: different dropout rates are not supported; set them to one value in config.json"
        )
    return rates[fields[0]]
