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
from jaxnlp.interop.module_names import CONFIG, WEIGHTS, Place, inputs_of, outputs_of, patterns
from jaxnlp.peft.lora import MAGNITUDE, A, B, LoRA
from jaxnlp.peft.tuning import TunedModel


def read(said: Mapping[str, Any], modules: Any, sizes: Any, folder: pathlib.Path) -> tuple[LoRA, dict[Any, np.ndarray]]:
    """(method, tuned leaves by path of an unrolled model).

    Args:
        said: adapter_config.json. modules: {module: (place, {leaf: array})} from the file.
        sizes: our parameters' shapes by path. folder: the adapter's, for error messages.

    Raises:
        UserError: a setting or a shape does not fit the model, or modules have different ranks.
    """
    path = folder / CONFIG
    rank, alpha = positive(said, "r", path), float(positive(said, "lora_alpha", path, float))
    grown = math.sqrt if said.get("use_rslora") else float
    leaves, targets = {}, []
    for module, (place, arrays) in modules.items():
        table = place.tensor.kind == "table"
        a, b = (arrays[f"lora_embedding_{x}" if table else f"lora_{x}"] for x in "AB")
        own_rank = of_module(said, "rank_pattern", module, path, rank)
        own_scale = of_module(said, "alpha_pattern", module, path, alpha) / grown(own_rank)
        inputs, parts = inputs_of(place, sizes), outputs_of(place, sizes)
        asked = ((own_rank, math.prod(inputs)), (sum(map(math.prod, parts)), own_rank))
        if (a.shape, b.shape) != asked:
            raise UserError(
                f"{folder / WEIGHTS}: {module} has low-rank matrices of shapes {a.shape} and {b.shape}; the model asks "
                f"for {asked[0]} and {asked[1]}, of rank {own_rank} as {CONFIG} has it"
            )
        lengths = arrays.get("lora_magnitude_vector")
        if lengths is not None and lengths.size != b.shape[0]:
            raise UserError(f"{folder / WEIGHTS}: {module} has {lengths.size} lengths (DoRA); expected {b.shape[0]}")
        starts = np.cumsum([0, *map(math.prod, parts)])
        for i, (ours, out) in enumerate(zip(place.paths, parts, strict=True)):
            own_a, own_b = _block(a, b[starts[i] : starts[i + 1]], i, len(parts), rank, place.name, folder)
            own_b = own_b.astype(np.float32) * (own_scale / (alpha / grown(rank)))
            leaves[*ours, A] = np.ascontiguousarray(own_a.T.reshape(*inputs, rank), np.float32)
            leaves[*ours, B] = np.ascontiguousarray(own_b.T.reshape(rank, *out), np.float32)
            if lengths is not None:
                part = lengths.reshape(-1)[starts[i] : starts[i + 1]]
                leaves[*ours, MAGNITUDE] = np.ascontiguousarray(part.reshape(out), np.float32)
            targets.append("/".join(ours))
    method = LoRA(
        targets=patterns(targets, sizes),
        rank=rank,
        alpha=alpha,
        dropout_rate=rate(said, "lora_dropout", path),
        use_rslora=bool(said.get("use_rslora")),
        use_dora=bool(said.get("use_dora")),
        tied=False,  # PEFT never adapts the output map with the table that it is
    )
    return method, leaves


def _block(a, b, i: int, parts: int, rank: int, name: str, folder):
    """(A, B) of part `i` of a matrix that holds `parts` of ours: with a shared A, or its block of a block-diagonal B.

    Raises:
        UserError: the rank is neither `rank` nor `parts * rank` with a block-diagonal B.
    """
    if a.shape[0] == rank:
        return a, b
    mine = slice(i * rank, (i + 1) * rank)
    if a.shape[0] != parts * rank or np.delete(b, np.r_[mine], axis=1).any():
        raise UserError(
            f"{folder / CONFIG}: {name} has rank {a.shape[0]} and r is {rank}; ranks that differ (rank_pattern) are "
            "not supported; train with one"
        )
    return a[mine], b[:, mine]


def write(tuning: TunedModel, flat: Any, known: Mapping[str, Place]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(adapter_config.json, tensors by name).

    Args:
        flat: tuned leaves by path of an unrolled model. known: places of PEFT's modules.

    Raises:
        UserError: PEFT has no equivalent: an adapted output map tied to the embedding, or DoRA on part of a matrix.
    """
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
            alphas[place.name] = method.alpha * (math.sqrt(grown) if method.use_rslora else grown)
        names = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A.weight", "lora_B.weight")
        arrays |= {f"{place.name}.{name}": x for name, x in zip(names, (a, b), strict=True)}
        if method.use_dora:
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
        "use_rslora": method.use_rslora,
        "use_dora": method.use_dora,
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
    """(A, B) of one update that joins several of ours side by side: the A stacked by rows, B block-diagonal."""
    inputs = next(x[0].reshape(-1, rank).shape[0] for x in found if x)
    a = np.zeros((rank * len(found), inputs), np.float32)
    b = np.zeros((sum(sizes), rank * len(found)), np.float32)
    for i, (x, start, size) in enumerate(zip(found, np.cumsum([0, *sizes[:-1]]), sizes, strict=True)):
        if x:
            mine = slice(i * rank, (i + 1) * rank)
            a[mine] = x[0].reshape(-1, rank).T
            b[start : start + size, mine] = x[1].reshape(rank, -1).T
    return a, b
