"""The config.json of a checkpoint in Hugging Face's layout: its values are checked before they are used."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from jaxnlp import config as configs
from jaxnlp.errors import FieldError, UserError, reading, reason
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
                return _checked(hf, family, names)
            except KeyError as e:
                raise UserError(f"{path}: field {e} is missing; {kind} requires it") from None
    except UserError as e:
        texts = {field: x for field, x in hf.items() if isinstance(x, str) and field not in TEXTS}
        quoted = [field for field, text in texts.items() if _is_number(text)]
        if quoted:
            expected = "expected a number or a truth value, without quotation marks"
            raise UserError(f"{path}: {quoted[0]}={hf[quoted[0]]!r}: {expected}") from e
        if isinstance(e, FieldError):
            raise UserError(f"{path}: {_their_name(hf, e, family, names)}: {e.expected}") from e
        if e.__cause__ is not None and (fields := _causes(hf, e.__cause__, family, names)):
            value = f"{fields[0]}={repr(hf[fields[0]])[:80]}"
            raise UserError(f"{path}: {value}: expected what transformers writes there ({reason(e.__cause__)})") from e
        raise


def _checked(hf: Mapping[str, Any], family: Any, names: Collection[str]) -> ModelConfig:
    """The model's config. Raises FieldError for an invalid value, or any exception for a value of another type."""
    config = family.config(with_defaults(hf), names)
    configs.check(config)
    for field, value in configs.field_values(config).items():
        if field == "vocab_size" and value is None:
            raise FieldError(field, value, "expected a positive number")
        if field.endswith("layers") and isinstance(value, int) and value > max(len(names), 1):
            # before a table of all their tensors is made
            raise FieldError(field, value, f"the checkpoint has only {len(names)} tensors; one is incomplete")
    return config


def _their_name(hf: Mapping[str, Any], error: FieldError, family: Any, names: Collection[str]) -> str:
    """The field of config.json that causes an error, and its value, as "field=value"."""
    is_it = lambda value: type(value) is type(error.value) and value == error.value
    fields = _causes(hf, error, family, names)
    exact = [field for field in fields if is_it(hf[field])]
    defaults = [field for field, value in with_defaults(hf).items() if field not in hf and is_it(value)]
    if not exact and len(defaults) == 1:
        return f"{defaults[0]}={error.value!r}"
    if not fields or (not exact and defaults):
        return f"{error.field}={error.value!r}"
    fields = exact or fields
    value = hf[fields[0]]
    inner = [name for name, x in value.items() if is_it(x)] if isinstance(value, Mapping) else []
    return f"{fields[0]}.{inner[0]}={error.value!r}" if len(inner) == 1 else f"{fields[0]}={value!r}"


def _causes(hf: Mapping[str, Any], error: BaseException, family: Any, names: Collection[str]) -> list[str]:
    """The fields of config.json without which, and so with their defaults, there is no error or another one.

    Those that leave none come first. Fields that no default replaces are left out.
    """
    ends = {}
    for field in hf.keys() - {"model_type"}:
        try:
            _checked({name: value for name, value in hf.items() if name != field}, family, names)
            ends[field] = ""
        except KeyError:
            continue
        except Exception as e:  # any value may be damaged
            ends[field] = str(e)
    return sorted((field for field, end in ends.items() if end != str(error)), key=lambda field: (ends[field], field))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True
