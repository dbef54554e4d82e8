"""The config.json of a checkpoint in Hugging Face's layout: its values are checked before they are used."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from jaxnlp import config as configs
from jaxnlp.errors import FieldError, UserError, reading
from jaxnlp.interop.config_defaults import with_defaults
from jaxnlp.nn.model_config import ModelConfig

TEXTS = ("transformers_version", "_name_or_path")  # may look like numbers


def model_config(path: pathlib.Path, hf: Mapping[str, Any], family: Any, names: Collection[str]) -> ModelConfig:
    """The model's config, of one family, from the fields of config.json.

    Args:
        path: of config.json. hf: its fields. names: of the checkpoint's tensors.

    Raises:
        UserError: names a field that is missing, of another type, or not supported.
    """
    kind = hf.get("model_type")
    try:
        with reading(path, f"not the config of a {kind}, or damaged"):
            try:
                config = family.config(with_defaults(hf), names)
            except KeyError as e:
                raise UserError(f"{path}: field {e} is missing; {kind} requires it") from None
            configs.check(config)
            _check_layers(path, config, names)
            return config
    except UserError as e:
        texts = {field: x for field, x in hf.items() if isinstance(x, str) and field not in TEXTS}
        quoted = [field for field, text in texts.items() if _is_number(text)]
        if quoted:
            expected = "expected a number or a truth value, without quotation marks"
            raise UserError(f"{path}: {quoted[0]}={hf[quoted[0]]!r}: {expected}") from e
        if isinstance(e, FieldError):
            raise UserError(f"{path}: {_their_name(hf, e)}={e.value!r}: {e.expected}") from e
        raise


def _their_name(hf: Mapping[str, Any], error: FieldError) -> str:
    """The field of config.json that holds the value; our own name of it if no field or several do."""
    fields = [field for field, value in hf.items() if type(value) is type(error.value) and value == error.value]
    return fields[0] if len(fields) == 1 else error.field


def _check_layers(path: pathlib.Path, config: ModelConfig, names: Collection[str]) -> None:
    """Raises UserError for more layers than tensors, before a table of all their tensors is made."""
    for field, value in configs.field_values(config).items():
        if field.endswith("layers") and isinstance(value, int) and value > max(len(names), 1):
            raise UserError(f"{path}: {field}={value}: the checkpoint has only {len(names)} tensors; one is incomplete")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True
