"""LoRA in PEFT's layout.

One Hugging Face matrix may hold several of ours (GPT-2's `c_attn` holds query, key and value). In a PEFT file these
share one A. If ours differ in A, they are written as one update whose rank is the sum of theirs, with a block-diagonal
B.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.interop.adapter_config import of_module, positive, rate
from jaxnlp.interop.module_names import CONFIG, WEIGHTS, HFModule, inputs_of, outputs_of, patterns
from jaxnlp.peft.lora import MAGNITUDE, A, B, LoRA
from jaxnlp.peft.tuning import TunedModel


def read(
    fields: Mapping[str, Any], modules: Any, sizes: Any, folder: pathlib.Path
) -> tuple[LoRA, dict[Any, np.ndarray]]:
    """(method, tuned leaves by path of an unrolled model).

    Args:
        fields: adapter_config.json. modules: {module: (hf_module, {leaf: array})} from the file.
        sizes: our parameters' shapes by path. folder: the adapter's, for error messages.

    Raises:
        UserError: a setting or a shape does not fit the model, or modules have different ranks.
    """
    path = folder / CONFIG
    rank, alpha = positive(fields, "r", path), float(positive(fields, "lora_alpha", path, float))
    rank_root = math.sqrt if fields.get("use_rslora") else float
    leaves, targets = {}, []
    for module, (hf_module, arrays) in modules.items():
        table = hf_module.tensor.kind == "table"
        a, b = (arrays[f"lora_embedding_{x}" if table else f"lora_{x}"] for x in "AB")
        module_rank = of_module(fields, "rank_pattern", module, path, rank)
        module_scale = of_module(fields, "alpha_pattern", module, path, alpha) / rank_root(module_rank)
        inputs, parts = inputs_of(hf_module, sizes), outputs_of(hf_module, sizes)
        expected = ((module_rank, math.prod(inputs)), (sum(map(math.prod, parts)), module_rank))
        if (a.shape, b.shape) != expected:
            raise UserError(
                f"{folder / WEIGHTS}: module {module} has low-rank matrices of shapes {a.shape} and {b.shape}; "
                f"expected {expected[0]} and {expected[1]} for rank {module_rank}, the value in {CONFIG}"
            )
        lengths = arrays.get("lora_magnitude_vector")
        if lengths is not None and lengths.size != b.shape[0]:
            raise UserError(
                f"{folder / WEIGHTS}: module {module} has {lengths.size} DoRA magnitudes; expected {b.shape[0]}"
            )
        starts = np.cumsum([0, *map(math.prod, parts)])
        for i, (module_path, out) in enumerate(zip(hf_module.paths, parts, strict=True)):
            a_part, b_part = _block(a, b[starts[i] : starts[i + 1]], i, len(parts), rank, hf_module.name, folder)
            b_part = b_part.astype(np.float32) * (module_scale / (alpha / rank_root(rank)))
            leaves[*module_path, A] = np.ascontiguousarray(a_part.T.reshape(*inputs, rank), np.float32)
            leaves[*module_path, B] = np.ascontiguousarray(b_part.T.reshape(rank, *out), np.float32)
            if lengths is not None:
                part = lengths.reshape(-1)[starts[i] : starts[i + 1]]
                leaves[*module_path, MAGNITUDE] = np.ascontiguousarray(part.reshape(out), np.float32)
            targets.append("/".join(module_path))
    method = LoRA(
        targets=patterns(targets, sizes),
        rank=rank,
        alpha=alpha,
        dropout_rate=rate(fields, "lora_dropout", path),
        use_rslora=bool(fields.get("use_rslora")),
        use_dora=bool(fields.get("use_dora")),
        tied=False,  # PEFT does not adapt the tied output map with the embedding
    )
    return method, leaves


def _block(a, b, i: int, parts: int, rank: int, name: str, folder):
    """(A, B) of part `i` of a matrix that holds `parts` of ours: with a shared A, or its block of a block-diagonal B.

    Raises:
        UserError: the rank is neither `rank` nor `parts * rank` with a block-diagonal B.
    """
    if a.shape[0] == rank:
        return a, b
    ranks = slice(i * rank, (i + 1) * rank)
    if a.shape[0] != parts * rank or np.delete(b, np.r_[ranks], axis=1).any():
        raise UserError(
            f"{folder / CONFIG}: module {name} has rank {a.shape[0]} and r={rank}; different ranks (rank_pattern) are "
            "not supported; train with one rank"
        )
    return a[ranks], b[:, ranks]


def write(
    tuning: TunedModel, flat: Any, hf_modules: Mapping[str, HFModule]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(adapter_config.json, tensors by name).

    Args:
        flat: tuned leaves by path of an unrolled model. hf_modules: PEFT's modules by name.

    Raises:
        UserError: PEFT has no equivalent: an adapted output map tied to the embedding, or DoRA on part of a matrix.
    """
    method: Any = tuning.method
    for target in tuning.targets.values():
        if method.tied and target.num_in is None and set(target.others) & set(method.intercepted_methods):
            raise UserError(
                f"{target.name}: LoRA also adapts the tied output map, and PEFT adapts only the embedding lookup; "
                "train with LoRA(tied=False), or merge the adapter"
            )
    arrays, ranks, alphas, targets = {}, {}, {}, []
    for hf_module in hf_modules.values():
        leaves = [_lora_of(flat, path) for path in hf_module.paths]
        if not any(leaves):
            continue
        first = next(x for x in leaves if x)
        sizes = [math.prod(x[1].shape[1:]) if x else math.prod(first[1].shape[1:]) for x in leaves]
        table = hf_module.tensor.kind == "table"
        same_a = all(x and np.array_equal(x[0], first[0]) for x in leaves)
        if same_a:
            a = first[0].reshape(-1, method.rank).T
            b = np.concatenate([x[1].reshape(method.rank, -1).T for x in leaves])
        else:
            a, b = _joined(leaves, sizes, method.rank)
            ranks[hf_module.name], growth = a.shape[0], a.shape[0] / method.rank
            alphas[hf_module.name] = method.alpha * (math.sqrt(growth) if method.use_rslora else growth)
        names = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A.weight", "lora_B.weight")
        arrays |= {f"{hf_module.name}.{name}": x for name, x in zip(names, (a, b), strict=True)}
        if method.use_dora:
            if not all(leaves):
                raise UserError(
                    f"{hf_module.name}: PEFT has no equivalent of DoRA on some parts of a matrix; target all its parts"
                )
            lengths = np.concatenate([x[2].reshape(-1) for x in leaves])
            arrays[f"{hf_module.name}.lora_magnitude_vector"] = lengths
        targets.append(hf_module.name)
    fields = {
        "peft_type": "LORA",
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout_rate,
        "use_rslora": method.use_rslora,
        "use_dora": method.use_dora,
        "bias": "none",
        "fan_in_fan_out": any(hf_modules[name].tensor.kind == "conv1d" for name in targets),
        "target_modules": targets,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    return fields, arrays


def _lora_of(flat, path):
    name = "/".join(path)
    return tuple(flat[f"{name}/{leaf}"] for leaf in (A, B, MAGNITUDE) if f"{name}/{leaf}" in flat)


def _joined(leaves, sizes: list[int], rank: int):
    """(A, B) of one update that joins several of ours side by side: the A stacked by rows, B block-diagonal."""
    inputs = next(x[0].reshape(-1, rank).shape[0] for x in leaves if x)
    a = np.zeros((rank * len(leaves), inputs), np.float32)
    b = np.zeros((sum(sizes), rank * len(leaves)), np.float32)
    for i, (x, start, size) in enumerate(zip(leaves, np.cumsum([0, *sizes[:-1]]), sizes, strict=True)):
        if x:
            ranks = slice(i * rank, (i + 1) * rank)
            a[ranks] = x[0].reshape(-1, rank).T
            b[start : start + size, ranks] = x[1].reshape(rank, -1).T
    return a, b
