"""LoRA in PEFT's layout.

Where one matrix of theirs is several of ours (GPT-2's `c_attn`), they share A in a file of theirs. Ours may differ, and
then go out as one update of the ranks' sum, with B in blocks.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.interop.places import CONFIG, WEIGHTS, Place, inputs_of, outputs_of, patterns
from jaxnlp.peft.lora import MAGNITUDE, A, B, LoRA
from jaxnlp.peft.tuning import Tuning


def read(said: Mapping[str, Any], modules: Any, sizes: Any, folder: pathlib.Path) -> tuple[LoRA, dict[Any, np.ndarray]]:
    """(method, tuned leaves by path of an unrolled model). sizes: shapes of ours by path."""
    pattern = said.get("alpha_pattern") or {}
    rank = said["r"]
    scale = said["lora_alpha"] / (math.sqrt(rank) if said.get("use_rslora") else rank)
    leaves, targets = {}, []
    for place, arrays in modules.values():
        table = place.tensor.kind == "table"
        a, b = (arrays.get(f"lora_embedding_{x}" if table else f"lora_{x}") for x in "AB")
        if a is None or b is None:
            raise UserError(f"{folder / WEIGHTS}: {place.name} has only one of its two low-rank matrices")
        own_scale = scale
        if a.shape[0] != rank or pattern:
            own_alpha = _matching(pattern, place.name, said["lora_alpha"])
            own_scale = own_alpha / (math.sqrt(a.shape[0]) if said.get("use_rslora") else a.shape[0])
        parts = outputs_of(place, sizes)
        inputs = inputs_of(place, sizes)
        if a.shape[1:] != (math.prod(inputs),) or b.shape != (sum(map(math.prod, parts)), a.shape[0]):
            raise UserError(
                f"{folder / WEIGHTS}: {place.name} has low-rank matrices of shapes {a.shape} and {b.shape}; the model "
                f"asks for ({a.shape[0]}, {math.prod(inputs)}) and ({sum(map(math.prod, parts))}, {a.shape[0]})"
            )
        starts = np.cumsum([0, *map(math.prod, parts)])
        for i, (path, out) in enumerate(zip(place.paths, parts, strict=True)):
            own_a, own_b = _block(a, b[starts[i] : starts[i + 1]], i, len(parts), rank, place.name, folder)
            leaves[*path, A] = np.ascontiguousarray(own_a.T.reshape(*inputs, rank), np.float32)
            leaves[*path, B] = np.ascontiguousarray((own_b.T * (own_scale / scale)).reshape(rank, *out), np.float32)
            if "lora_magnitude_vector" in arrays:
                part = arrays["lora_magnitude_vector"].reshape(-1)[starts[i] : starts[i + 1]]
                leaves[*path, MAGNITUDE] = np.ascontiguousarray(part.reshape(out), np.float32)
            targets.append("/".join(path))
    method = LoRA(
        targets=patterns(targets),
        rank=rank,
        alpha=float(said["lora_alpha"]),
        dropout_rate=float(said.get("lora_dropout") or 0.0),
        rank_stabilized=bool(said.get("use_rslora")),
        dora=bool(said.get("use_dora")),
        tied=False,  # PEFT never adapts the output map with the table that it is
    )
    return method, leaves


def _matching(pattern: Mapping[str, Any], name: str, default: float) -> float:
    return next((x for key, x in pattern.items() if name == key or name.endswith(f".{key}")), default)


def _block(a, b, i: int, parts: int, rank: int, name: str, folder):
    """The low-rank matrices of one of ours: all of a rank that is shared, or its block of the ranks' sum."""
    if a.shape[0] == rank:
        return a, b
    mine = slice(i * rank, (i + 1) * rank)
    if a.shape[0] != parts * rank or np.delete(b, np.r_[mine], axis=1).any():
        raise UserError(
            f"{folder / CONFIG}: {name} has rank {a.shape[0]} and r is {rank}; ranks that differ (rank_pattern) are "
            "not supported; train with one"
        )
    return a[mine], b[:, mine]


def write(tuning: Tuning, flat: Any, known: Mapping[str, Place]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(adapter_config.json, tensors by name). flat: leaves by path, layers apart."""
    method: Any = tuning.method
    for target in tuning.targets.values():
        if method.tied and target.num_in is None and set(target.others) & set(method.methods):
            raise UserError(
                f"{target.name}: is the output map too, and PEFT adapts only the reading of its rows; train with "
                "LoRA(tied=False), or merge"
            )
    arrays, ranks, alphas, targets = {}, {}, {}, []
    for place in known.values():
        found = [_lora_of(flat, path) for path in place.paths]
        if not any(found):
            continue
        some = next(x for x in found if x)
        sizes = [math.prod(x[1].shape[1:]) if x else math.prod(some[1].shape[1:]) for x in found]
        table = place.tensor.kind == "table"
        shared = all(x and np.array_equal(x[0], some[0]) for x in found)
        if shared:
            a = some[0].reshape(-1, method.rank).T
            b = np.concatenate([x[1].reshape(method.rank, -1).T for x in found])
        else:
            a, b = _joined(found, sizes, method.rank)
            ranks[place.name], grown = a.shape[0], a.shape[0] / method.rank
            alphas[place.name] = method.alpha * (math.sqrt(grown) if method.rank_stabilized else grown)
        names = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A.weight", "lora_B.weight")
        arrays |= {f"{place.name}.{name}": x for name, x in zip(names, (a, b), strict=True)}
        if method.dora:
            if not all(found):
                raise UserError(f"{place.name}: DoRA of some of its parts alone has no equal in PEFT; target all")
            lengths = np.concatenate([x[2].reshape(-1) for x in found])
            arrays[f"{place.name}.lora_magnitude_vector"] = lengths
        targets.append(place.name)
    said = {
        "peft_type": "LORA",
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout_rate,
        "use_rslora": method.rank_stabilized,
        "use_dora": method.dora,
        "bias": "none",
        "fan_in_fan_out": any(known[name].tensor.kind == "conv1d" for name in targets),
        "target_modules": targets,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    return said, arrays


def _lora_of(flat, path):
    name = "/".join(path)
    return tuple(flat[f"{name}/{leaf}"] for leaf in (A, B, MAGNITUDE) if f"{name}/{leaf}" in flat)


def _joined(found, sizes: list[int], rank: int):
    """One update of theirs that is several of ours side by side: A one below the other, B in blocks."""
    inputs = next(x[0].reshape(-1, rank).shape[0] for x in found if x)
    a = np.zeros((rank * len(found), inputs), np.float32)
    b = np.zeros((sum(sizes), rank * len(found)), np.float32)
    for i, (x, start, size) in enumerate(zip(found, np.cumsum([0, *sizes[:-1]]), sizes, strict=True)):
        if x:
            mine = slice(i * rank, (i + 1) * rank)
            a[mine] = x[0].reshape(-1, rank).T
            b[start : start + size, mine] = x[1].reshape(rank, -1).T
    return a, b
