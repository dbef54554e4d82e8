"""Soft prompts and prefixes in PEFT's layout: one table, `prompt_embeddings`, whose kind is in adapter_config.json.

A prompt's table is (P, D). For an encoder-decoder it is (2 P, D) by default, and only the first P rows are used, in
front of the encoder's inputs. A prefix's table is (P, 2 L N K): for each layer its keys, then its values
(`past_key_values`).

Shape legend: P prompt length, D model, L layers, N key and value heads, K head size.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.interop.adapter_config import positive
from jaxnlp.interop.module_names import CONFIG
from jaxnlp.peft.prefix import KEY, VALUE, Prefix
from jaxnlp.peft.prompt import PROMPT, Prompt
from jaxnlp.peft.tuning import TunedModel

TABLE = "prompt_embeddings"
KINDS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def read(fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray], config: Any, path: pathlib.Path):
    """(method, tuned leaves by path of an unrolled model) from a PEFT file.

    Args:
        fields: adapter_config.json. tensors: the file's. config: the base model's. path: the file, for error messages.

    Raises:
        UserError: the file has other tensors or a table of another shape; a prefix for an encoder-decoder.
    """
    if list(tensors) != [TABLE]:
        raise UserError(f"{path}: tensors {', '.join(tensors)}; expected only {TABLE}")
    table, P = tensors[TABLE], positive(fields, "num_virtual_tokens", path.with_name(CONFIG))
    kind, parts = fields["peft_type"], fields.get("num_transformer_submodules") or 1
    encoder_decoder = config.kind == "encoder-decoder"
    if encoder_decoder and kind == "PREFIX_TUNING":
        raise UserError(
            f"{path}: PREFIX_TUNING is not supported for encoder-decoders; expected PROMPT_TUNING or P_TUNING"
        )
    if parts not in ((1, 2) if encoder_decoder else (1,)):
        raise UserError(f"{path}: num_transformer_submodules={parts}; expected 1 (for encoder-decoders 1 or 2)")
    if kind != "PREFIX_TUNING":
        _expect(path, table, (parts * P, config.embed_dim))
        return Prompt(length=P, init="random"), {("embed", PROMPT): np.ascontiguousarray(table[:P], np.float32)}
    N, K, L = config.kv_heads, config.key_dim, config.num_layers
    _expect(path, table, (P, 2 * L * N * K))
    parts = table.astype(np.float32).reshape(P, L, 2, N, K)
    names = (KEY, VALUE)
    leaves = {(f"block_{i}", "attention", name): parts[:, i, j] for i in range(L) for j, name in enumerate(names)}
    return Prefix(length=P), {path: np.ascontiguousarray(x) for path, x in leaves.items()}


def _expect(path: pathlib.Path, table: np.ndarray, shape: tuple[int, ...]) -> None:
    if table.shape != shape:
        raise UserError(f"{path}: {TABLE} has shape {table.shape}; expected {shape}")


def write(
    tuning: TunedModel, flat: Mapping[str, np.ndarray], config: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(adapter_config.json, tensors by name).

    Args:
        flat: prompt or prefix vectors by path of an unrolled model, computed by the prompt encoder if there is one.

    Raises:
        UserError: PEFT has no equivalent of the prompt or prefix.
    """
    method: Any = tuning.method
    fields = {
        "num_virtual_tokens": method.length,
        "token_dim": config.embed_dim,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_transformer_submodules": 1,
    }
    if isinstance(method, Prompt):
        if method.placeholder is not None:
            name = type(method).__name__
            raise UserError(f"{name}(placeholder=...): PEFT has no equivalent; it puts prompts before the text only")
        (table,) = flat.values()
        return {**fields, "peft_type": "PROMPT_TUNING", "prompt_tuning_init": "RANDOM"}, {TABLE: table}
    expected_paths = [f"block_{i}/attention/{name}" for i in range(config.num_layers) for name in (KEY, VALUE)]
    if sorted(flat) != sorted(expected_paths):
        raise UserError(
            "Prefix(): PEFT needs a prefix in every layer's self-attention; train with targets=('attention',)"
        )
    table = np.stack([flat[path] for path in expected_paths], axis=1).reshape(method.length, -1)
    assert table.shape[1] == 2 * config.num_layers * math.prod(flat[expected_paths[0]].shape[1:])
    fields |= {"token_dim": config.kv_heads * config.key_dim, "num_attention_heads": config.kv_heads}
    return {
        **fields,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "encoder_hidden_size": None,
    }, {TABLE: table}
