"""Adapters in the layout of Hugging Face PEFT, both ways: adapter_config.json and adapter_model.safetensors.

  method, tuned = load_adapter("path/to/adapter", config)       # LoRA, (IA)^3, prompts and prefixes
  save_adapter("path/to/adapter", config, tuning, tuned)        # peft.PeftModel.from_pretrained reads it

Which of our modules a tensor of theirs belongs to is read off the family's table of tensors. Where one matrix of theirs
is several of ours (GPT-2's `c_attn`), they share A in a file of theirs; ours may differ, and then go out as one update
of the ranks' sum, with B in blocks.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.interop import huggingface, soft_prompts
from jaxnlp.interop.tensors import Tensor
from jaxnlp.peft.ia3 import IA3, IN, OUT
from jaxnlp.peft.lora import MAGNITUDE, A, B, LoRA
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt
from jaxnlp.peft.tuning import Method, Tuning, plan
from jaxnlp.sharding.axes import abstract_params, example_inputs
from jaxnlp.sharding.rules import path_name
from jaxnlp.trees import put

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
BASE = ".base_layer."
KINDS = ("LORA", "IA3", *soft_prompts.KINDS)
MUST_BE = {  # fields whose other values change what an adapter computes, and are not read
    "bias": "none",
    "modules_to_save": None,
    "layers_to_transform": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "lora_bias": False,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A module of theirs: its name in the whole model, and ours by path, in the order of its outputs."""

    name: str
    paths: tuple[tuple[str, ...], ...]
    tensor: Tensor


def places(config: Any) -> dict[str, Place]:
    """Every module of theirs that has a matrix or a table, by name, for a model's config of ours.

    Raises:
        UserError: a model that transformers has no class for.
    """
    family = next((f for f in huggingface.FAMILIES if f.accepts(config)), None)
    if family is None:
        raise UserError(f"{type(config).__name__}: transformers has no class for this model, so PEFT has no adapters")
    found = {}
    for tensor in family.tensors(config):
        if tensor.kind != "vector":
            name = tensor.name.removesuffix(".weight")
            found[name] = Place(name, tuple(tuple(path.split("/"))[:-1] for path in tensor.paths), tensor)
    return found


def load_adapter(folder: str | pathlib.Path, config: Any, base: Any = None) -> tuple[Method, Any]:
    """An adapter of theirs as (method, tuned parameters), for `plan(method, config.module(), ...)`.

    Args:
        config: of the model it was trained on, as `huggingface.load` gives it; its layers may be scanned.
        base: its parameters, to compare with those that PEFT stores beside an adapter of embeddings.

    Raises:
        UserError: a folder without one; a kind or a setting that is not supported; a tensor that is missing, left over
            or of another shape.
    """
    folder = pathlib.Path(folder)
    said = huggingface.read_json(folder / CONFIG)
    kind = said.get("peft_type")
    if kind not in KINDS:
        raise UserError(f"{folder / CONFIG}: peft_type={kind!r} is not supported; expected one of {', '.join(KINDS)}")
    for field, wanted in MUST_BE.items():
        if said.get(field, wanted) not in (wanted, [] if wanted is None else wanted):
            raise UserError(f"{folder / CONFIG}: {field}={said[field]!r} is not supported; expected {wanted!r}")
    tensors = huggingface.read_tensors(folder / WEIGHTS)
    known = places(config)
    tensors = _checked_copies(folder / WEIGHTS, tensors, known, base)
    unrolled = dataclasses.replace(config, scan_layers=False) if getattr(config, "scan_layers", False) else config
    shapes, _ = abstract_params(unrolled.module(), *example_inputs(unrolled, 1, 2))
    sizes = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
    if kind in soft_prompts.KINDS:
        method, leaves = soft_prompts.read(said, tensors, config, folder / WEIGHTS)
    else:
        modules = _by_module(folder / WEIGHTS, tensors, known)
        method, leaves = (_read_lora if kind == "LORA" else _read_ia3)(said, modules, sizes, folder)
    tuned: Any = {}
    for path, x in leaves.items():
        tuned = put(tuned, path, x)
    tuning = plan(method, config.module(), *example_inputs(config, 1, 2))
    if unrolled is not config:
        tuned = stacked(tuned, config.num_layers)
    wanted = jax.tree.map(lambda x: x.shape, jax.eval_shape(lambda: tuning.init(jax.random.key(0), _zeros(tuning))))
    found = jax.tree.map(lambda x: x.shape, tuned)
    if wanted != found:
        raise UserError(f"{folder}: does not adapt the same modules in every layer, which a scanned model needs")
    return method, jax.tree.map(jnp.asarray, tuned)


def _zeros(tuning: Tuning) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tuning.shapes)


def _checked_copies(path, tensors: Mapping[str, np.ndarray], known: Mapping[str, Place], base: Any):
    """The tensors without copies of the base's own. Raises UserError where they are not copies: it is another base."""
    found = {}
    flat = {path_name(at): x for at, x in jax.tree_util.tree_leaves_with_path(apart(base or {}))}
    for name, array in tensors.items():
        module, copied, _ = name.removeprefix(PREFIX).partition(f"{BASE}weight")
        if not copied:
            found[name] = array
            continue
        place = known.get(module)
        if place is None:
            raise UserError(f"{path}: tensor {name} has no place in this model")
        if base is None:
            raise UserError(f"{path}: {name} is a copy of the base's own parameter; give the base, to be compared with")
        ours = place.tensor.to_theirs([np.asarray(flat[name]) for name in place.tensor.paths])
        if ours.shape != array.shape or (ours != array).any():
            raise UserError(f"{path}: {name} is not what this base has there; the adapter belongs to another")
    return found


def _by_module(path, tensors: Mapping[str, np.ndarray], known: Mapping[str, Place]):
    """{place: {what: array}} of the tensors in a file, named `base_model.model.<module>.<what>`."""
    bare = {name.split(".", 1)[1]: place for name, place in known.items() if "." in name}
    found: dict[str, tuple[Place, dict[str, np.ndarray]]] = {}
    for name, array in tensors.items():
        module, what = _split(name.removeprefix(PREFIX))
        place = known.get(module) or bare.get(module)  # adapters of a model without its head lack the first name
        if place is None or not what:
            raise UserError(f"{path}: tensor {name} has no place in this model")
        found.setdefault(place.name, (place, {}))[1][what] = array
    return found


def _split(name: str) -> tuple[str, str]:
    for what in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "ia3_l"):
        module, found, _ = name.partition(f".{what}")
        if found:
            return module, what
    return name, ""


def _read_lora(said, modules, sizes, folder):
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
        parts = _outputs(place, sizes)
        inputs = _inputs(place, sizes)
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
        targets=_patterns(targets),
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


def _inputs(place: Place, sizes) -> tuple[int, ...]:
    shape = sizes[place.tensor.paths[0]]
    return shape[:1] if place.tensor.kind == "table" else shape[: place.tensor.num_in]


def _outputs(place: Place, sizes) -> list[tuple[int, ...]]:
    num_in = 1 if place.tensor.kind == "table" else place.tensor.num_in
    return [sizes[path][num_in:] for path in place.tensor.paths]


def _read_ia3(said, modules, sizes, folder):
    leaves, outs, ins = {}, [], []
    for place, arrays in modules.values():
        scale = arrays["ia3_l"]
        into = scale.shape[0] == 1 and len(scale.shape) == 2
        inputs, parts = _inputs(place, sizes), _outputs(place, sizes)
        wanted = math.prod(inputs) if into else sum(map(math.prod, parts))
        if scale.size != wanted:
            raise UserError(f"{folder / WEIGHTS}: {place.name} has {scale.size} scales; the model asks for {wanted}")
        starts = np.cumsum([0, *map(math.prod, parts)])
        for i, (path, out) in enumerate(zip(place.paths, parts, strict=True)):
            if into:
                leaves[*path, IN] = np.ascontiguousarray(scale.reshape(inputs), np.float32)
                ins.append("/".join(path))
            else:
                own = scale.reshape(-1)[starts[i] : starts[i + 1]].reshape(out)
                leaves[*path, OUT] = np.ascontiguousarray(own, np.float32)
                outs.append("/".join(path))
    return IA3(outputs=_patterns(outs), inputs=_patterns(ins)), leaves


def _patterns(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths of modules as patterns, with the numbers of blocks left open, so that they fit a scanned model too."""
    parts = (path.split("/") for path in paths)
    return tuple(dict.fromkeys("/".join("block*" if p.startswith("block_") else p for p in path) for path in parts))


def save_adapter(
    folder: str | pathlib.Path,
    config: Any,
    tuning: Tuning,
    tuned: Any,
    base_name: str | None = None,
    task_type: str | None = None,
) -> None:
    """Writes what `load_adapter`, and PEFT's `from_pretrained`, read.

    Args:
        config: of the model. tuned: parameters of `tuning`. base_name: where the base is found, a hub id or a folder.
        task_type: theirs, as "CAUSAL_LM", if their loader is to choose a class by it.

    Raises:
        UserError: a method or a model that PEFT has no equal of; a folder that cannot be written.
    """
    method = tuning.method
    if not isinstance(method, LoRA | IA3 | Prompt | Prefix):
        name = type(method).__name__
        raise UserError(f"{name}(): not written in PEFT's layout; LoRA(), IA3(), Prompt(), PTuning() and Prefix() are")
    if tuning.replaced:
        names = ", ".join("/".join(path) for path in tuning.replaced[:3])
        raise UserError(f"{folder}: parameters trained whole ({names}) have no place in PEFT's layout")
    leaves = apart(tuning.expanded(tuned))
    flat = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(leaves)}
    known = places(config)
    if isinstance(method, LoRA):
        said, arrays = _write_lora(tuning, flat, known)
    else:
        said, arrays = _write_ia3(flat, known) if isinstance(method, IA3) else soft_prompts.write(tuning, flat, config)
    said |= {"base_model_name_or_path": base_name, "task_type": task_type, "inference_mode": True}
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        named = {name if name == soft_prompts.TABLE else PREFIX + name: x for name, x in arrays.items()}
        huggingface.write_tensors(named, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n")
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror or e})") from None


def _write_lora(tuning: Tuning, flat, known: Mapping[str, Place]):
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


def _write_ia3(flat, known: Mapping[str, Place]):
    arrays, targets, into = {}, [], []
    for place in known.values():
        names = ["/".join(path) for path in place.paths]
        outs = [flat.get(f"{name}/{OUT}") for name in names]
        ins = [flat.get(f"{name}/{IN}") for name in names]
        if any(x is not None for x in ins):
            if any(x is not None for x in outs) or len(names) > 1:
                raise UserError(f"{place.name}: scales of its inputs with those of its outputs have no equal in PEFT")
            arrays[f"{place.name}.ia3_l"] = np.asarray(ins[0]).reshape(1, -1)
            into.append(place.name)
        elif any(x is not None for x in outs):
            some = next(x for x in outs if x is not None)
            full = [np.ones_like(some) if x is None else x for x in outs]
            arrays[f"{place.name}.ia3_l"] = np.concatenate([x.reshape(-1) for x in full])[:, None]
        else:
            continue
        targets.append(place.name)
    conv = any(known[name].tensor.kind == "conv1d" for name in targets)
    said = {"peft_type": "IA3", "target_modules": targets, "feedforward_modules": into, "fan_in_fan_out": conv}
    return said, arrays


def apart(tuned: Any) -> Any:
    """Tuned parameters with layers apart, whether or not they were scanned."""
    return huggingface.unstacked(tuned)


def stacked(tuned: Any, num_layers: int) -> Any:
    """The way back, for a model whose layers are scanned."""
    if not isinstance(tuned, Mapping):
        return tuned
    blocks = [tuned[f"block_{i}"] for i in range(num_layers) if f"block_{i}" in tuned]
    rest = {name: stacked(x, num_layers) for name, x in tuned.items() if not name.startswith("block_")}
    return {**rest, "blocks": jax.tree.map(lambda *x: np.stack(x), *blocks)} if blocks else rest
