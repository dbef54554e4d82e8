"""Reads PEFT's adapter_config.json: the fields in `READ` are used, those in `SILENT` are ignored.

Any other field could change what the adapter computes, so it must be empty: null, false, [] or {}.
"""

import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.interop.tensor_files import read_json

READ = {
    *("peft_type", "bias", "init_lora_weights", "r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern"),
    *("use_rslora", "use_dora", "num_virtual_tokens", "num_transformer_submodules"),
}
SILENT = {  # the adapter's origin and training; the adapted modules are read from the tensors
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "feedforward_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config", "init_ia3_weights"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # options of init_lora_weights
    *("token_dim", "num_attention_heads", "num_layers", "prompt_tuning_init", "prompt_tuning_init_text"),
    *("tokenizer_name_or_path", "tokenizer_kwargs", "encoder_reparameterization_type", "encoder_hidden_size"),
    *("encoder_num_layers", "encoder_dropout", "prefix_projection", "init_weights"),
}
INITS = (True, False, "gaussian", "eva", "orthogonal")  # these set the initial tensors only


def read(path: pathlib.Path, kinds: Sequence[str]) -> dict[str, Any]:
    """The fields of an adapter_config.json.

    Args:
        kinds: supported values of `peft_type`.

    Raises:
        UserError: the file is missing or not a JSON object, or its peft_type or another setting is not supported.
    """
    fields = read_json(path)
    kind = fields.get("peft_type")
    if kind not in kinds:
        raise UserError(f"{path}: peft_type={kind!r} is not supported; expected one of {', '.join(kinds)}")
    if fields.get("bias", "none") != "none":
        raise UserError(f"{path}: bias={fields['bias']!r} is not supported; expected 'none'")
    init = fields.get("init_lora_weights", True)
    if init not in INITS:
        raise UserError(
            f"{path}: init_lora_weights={init!r} is not supported; expected one of {', '.join(map(str, INITS))}. "
            "PEFT may also change the base's parameters when it loads such an adapter; convert it to plain LoRA with "
            "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    for field, value in fields.items():
        if field not in READ | SILENT and value not in (None, False, [], {}):
            raise UserError(
                f"{path}: {field}={value!r} is not supported; expected null, false, [] or {{}}, because it may "
                "change what the adapter computes"
            )
    return fields


def positive(fields: Mapping[str, Any], field: str, path: pathlib.Path, kind: type = int) -> Any:
    """A field's positive number. kind: int, or float for any number. Raises UserError if it is missing or invalid."""
    value: Any = fields.get(field)
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        problem = f"{field}={value!r}" if field in fields else f"field {field} is missing"
        expected = "a positive integer" if kind is int else "a positive number"
        raise UserError(f"{path}: {problem}; expected {expected}. Set it to the value used in training")
    return value


def rate(fields: Mapping[str, Any], field: str, path: pathlib.Path) -> float:
    """A field's probability in [0, 1); 0 if the field is missing. Raises UserError for any other value."""
    value = fields.get(field) or 0.0
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{path}: {field}={value!r}; expected a probability in [0, 1)")
    return float(value)


def of_module(fields: Mapping[str, Any], field: str, module: str, path: pathlib.Path, default: Any) -> Any:
    """A module's rank or alpha: that of the first pattern that matches the end of its name, as in PEFT, or `default`.

    Args:
        field: "rank_pattern" or "alpha_pattern", which holds {regular expression: number}.
        module: the module's name in the adapter file.

    Raises:
        UserError: the field is not an object, a pattern is not a regular expression, or a number is not positive.
    """
    patterns = fields.get(field) or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{path}: {field}={patterns!r}; expected an object that maps patterns to numbers")
    for pattern in patterns:
        try:
            hit = re.match(rf"(.*\.)?({pattern})$", module)  # peft.utils.other.get_pattern_key
        except re.error as e:
            raise UserError(
                f"{path}: {field} has the key {pattern!r}, which is not a valid regular expression ({e})"
            ) from None
        if hit:
            name = f"{field}[{pattern!r}]"
            return positive({name: patterns[pattern]}, name, path, type(default))
    return default
