"""Reads and writes adapters in Hugging Face PEFT's layout: adapter_config.json and adapter_model.safetensors.

method, tuned = load_adapter("path/to/adapter", config)       # LoRA, (IA)^3, prompts and prefixes
save_adapter("path/to/adapter", config, tuning, tuned)        # peft.PeftModel.from_pretrained reads it
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.interop import adapter_config, huggingface, ia3, lora, soft_prompts
from jaxnlp.interop.module_names import CONFIG, WEIGHTS, Place, layers_of, opened, places
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.method import PEFTMethod
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt
from jaxnlp.peft.tuning import TunedModel, attach
from jaxnlp.sharding.functional import abstract_params
from jaxnlp.sharding.rules import path_name
from jaxnlp.trees import set_at

PREFIX = "base_model.model."
BASE = ".base_layer."
KINDS = ("LORA", "IA3", *soft_prompts.KINDS)


def load_adapter(folder: str | pathlib.Path, config: Any, base: Any = None) -> tuple[PEFTMethod, Any]:
    """A PEFT adapter as (method, tuned parameters), for `attach(method, config.build(), ...)`.

    Args:
        config: config of the base model, as returned by `huggingface.load`; its layers may be scanned.
        base: the base model's parameters. Needed if the file contains copies of them, which PEFT stores with adapters
            of embeddings; the copies must be equal.

    Raises:
        UserError: the folder has no adapter; its kind or a setting is not supported; a tensor is missing, left over or
            of another shape.
    """
    folder = pathlib.Path(folder)
    said = adapter_config.read(folder / CONFIG, KINDS)
    kind = said["peft_type"]
    tensors = huggingface.read_tensors(folder / WEIGHTS)
    known = places(config)
    tensors = _checked_copies(folder / WEIGHTS, tensors, known, base)
    unrolled = dataclasses.replace(config, scan_layers=False) if config.scan_layers else config
    shapes, _ = abstract_params(unrolled.build(), *unrolled.example_inputs(1, 2))
    sizes = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
    if kind in soft_prompts.KINDS:
        method, leaves = soft_prompts.read(said, tensors, config, folder / WEIGHTS)
    else:
        modules = _by_module(folder / WEIGHTS, tensors, known, said)
        method, leaves = (lora.read if kind == "LORA" else ia3.read)(said, modules, sizes, folder)
    if unrolled is not config:
        _check_layers(folder, leaves, sizes)
    tuned: Any = {}
    for path, x in leaves.items():
        tuned = set_at(tuned, path, x)
    tuned = stacked(tuned, folder) if unrolled is not config else tuned
    tuning = attach(method, config.build(), *config.example_inputs(1, 2))
    shapes_of = lambda tree: {path_name(at): x.shape for at, x in jax.tree_util.tree_leaves_with_path(tree)}
    wanted = shapes_of(jax.eval_shape(lambda: tuning.init(jax.random.key(0), _zeros(tuning))))
    found = shapes_of(tuned)
    for name in (wanted | found) if wanted != found else ():
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{folder}: has {found.get(name, 'nothing')} for {name}; {type(method).__name__} of its modules asks "
                f"for {wanted.get(name, 'nothing')}"
            )
    return method, jax.tree.map(jnp.asarray, tuned)


def _check_layers(folder: pathlib.Path, leaves: Mapping[tuple[str, ...], Any], sizes: Any) -> None:
    """Raises UserError if a module is adapted in some layers and not in all, or with different leaves."""
    layers = layers_of(sizes)
    for *path, leaf in leaves:
        module = "/".join(path)
        for other in layers.get(opened(module), ()):
            if (*other.split("/"), leaf) not in leaves:
                raise UserError(
                    f"{folder}: does not adapt the same modules in every layer, which a scanned model needs: {module} "
                    f"is there, {other} is missing; read it with scan_layers=False"
                )


def _zeros(tuning: TunedModel) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tuning.shapes)


def _checked_copies(path, tensors: Mapping[str, np.ndarray], known: Mapping[str, Place], base: Any):
    """The tensors without copies of base parameters. Raises UserError if a copy differs: it is another base."""
    found = {}
    flat = {path_name(at): x for at, x in jax.tree_util.tree_leaves_with_path(huggingface.unstacked(base or {}))}
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


def _by_module(path, tensors: Mapping[str, np.ndarray], known: Mapping[str, Place], said: Mapping[str, Any]):
    """The tensors of a file by module: {module: (place, {leaf: array})}.

    Args:
        tensors: named `base_model.model.<module>.<leaf>`.

    Raises:
        UserError: a module is not in the model, or does not have exactly the leaves of the adapter's kind.
    """
    rest = lambda name: name.partition(".")[2]
    count = collections.Counter(map(rest, known))  # an encoder's and a decoder's modules have the same rest
    bare = {rest(name): place for name, place in known.items() if count[rest(name)] == 1}
    found: dict[str, tuple[Place, dict[str, np.ndarray]]] = {}
    for name, array in tensors.items():
        module, what = _split(name.removeprefix(PREFIX))
        place = known.get(module) or bare.get(module)  # adapters of a model without its head lack the first name
        if place is None or not what:
            raise UserError(f"{path}: tensor {name} has no place in this model")
        found.setdefault(module, (place, {}))[1][what] = array
    for module, (place, arrays) in found.items():
        wanted = _kinds(said, place)
        if set(arrays) != set(wanted):
            raise UserError(
                f"{path}: {module} has {', '.join(sorted(arrays))}; expected {', '.join(wanted)}, for "
                f"peft_type={said['peft_type']!r} with use_dora={bool(said.get('use_dora'))}"
            )
    return found


def _split(name: str) -> tuple[str, str]:
    """(module, leaf), as ("h.0.attn.c_attn", "lora_A"); (name, "") if it has no adapter leaf."""
    module, _, what = name.removesuffix(".weight").rpartition(".")
    return (module, what) if what.startswith(("lora_", "ia3_")) else (name, "")


def _kinds(said: Mapping[str, Any], place: Place) -> list[str]:
    """Names of the leaves that an adapted module has in a PEFT file."""
    if said["peft_type"] == "IA3":
        return ["ia3_l"]
    if place.tensor.kind == "table":
        return ["lora_embedding_A", "lora_embedding_B"]
    return ["lora_A", "lora_B", *(["lora_magnitude_vector"] if said.get("use_dora") else [])]


def save_adapter(
    folder: str | pathlib.Path,
    config: Any,
    tuning: TunedModel,
    tuned: Any,
    base_name: str | None = None,
    task_type: str | None = None,
) -> None:
    """Writes an adapter that `load_adapter` and PEFT's `from_pretrained` can read.

    Args:
        config: config of the model. tuned: parameters of `tuning`.
        base_name: where the base model is found, a hub id or a folder.
        task_type: PEFT's task type, as "CAUSAL_LM", by which its auto classes choose a model class.

    Raises:
        UserError: PEFT has no equivalent of the method or the model, or the folder cannot be written.
    """
    method = tuning.method
    if not isinstance(method, LoRA | IA3 | Prompt | Prefix):
        name = type(method).__name__
        raise UserError(f"{name}(): not written in PEFT's layout; LoRA(), IA3(), Prompt(), PTuning() and Prefix() are")
    if tuning.replaced:
        names = ", ".join("/".join(path) for path in tuning.replaced[:3])
        raise UserError(
            f"{folder}: parameters trained whole ({names}) are not written in PEFT's layout, and the adapter is of a "
            "model that has them; merge it, or keep all that was tuned with jaxnlp.peft.files.save "
            "(experiments.export --adapter --out=NAME.safetensors)"
        )
    leaves = huggingface.unstacked(tuning.expanded(tuned))
    flat = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(leaves)}
    known = places(config)
    if isinstance(method, LoRA):
        said, arrays = lora.write(tuning, flat, known)
    else:
        said, arrays = ia3.write(flat, known) if isinstance(method, IA3) else soft_prompts.write(tuning, flat, config)
    said |= {"base_model_name_or_path": base_name, "task_type": task_type, "inference_mode": True}
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        named = {name if name == soft_prompts.TABLE else PREFIX + name: x for name, x in arrays.items()}
        huggingface.write_tensors(named, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n")
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror or e})") from None


def trunk_alone(config: Any, tuning: TunedModel, tuned: Any) -> tuple[Any, TunedModel, Any, list[str]]:
    """Drops the head of a tuned model, for `save_adapter`: (config, tuning, tuned, names of dropped parameters).

    Args:
        config: config of a `ModelWithHead` model; for any other, the arguments are returned unchanged.
        tuned: parameters of `tuning`.
    """
    if config.body is config:
        return config, tuning, tuned, []
    tuned = tuning.expanded(tuned)
    inside = lambda held: {path[1:]: x for path, x in held.items() if path[0] == "trunk"}
    trunk = dataclasses.replace(
        tuning,
        targets={path: dataclasses.replace(x, path=path) for path, x in inside(tuning.targets).items()},
        leaves=inside(tuning.leaves),
        shared={},
        replaced=list(inside(dict.fromkeys(tuning.replaced))),
        outer=tuning.outer[1:] if tuning.outer else None,
        shapes=tuning.shapes["trunk"],
        base_axes=tuning.base_axes["trunk"],
        blocks=inside(tuning.blocks),
    )
    left = {name: x for name, x in tuned.items() if name != "trunk"}
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(left)]
    return config.body, trunk, tuned.get("trunk", {}), names


def task_type(config: Any) -> str | None:
    """PEFT's task type for a model, by which it chooses the transformers class; None if PEFT has none for it."""
    if config.kind == "encoder":
        return "FEATURE_EXTRACTION" if tuple(config.heads) in ((), ("pooler",)) else None
    return {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}.get(config.kind)


def stacked(tree: Any, source: str | pathlib.Path = "") -> Any:
    """Stacks per-layer parameters for a model whose layers are scanned; the inverse of `huggingface.unstacked`.

    Args:
        source: where the parameters come from, for the error message.

    Raises:
        UserError: the layers do not have the same parameters.
    """
    if not isinstance(tree, Mapping):
        return tree
    apart = sorted((name for name in tree if name.startswith("block_")), key=lambda name: int(name.split("_")[1]))
    rest = {name: stacked(x, source) for name, x in tree.items() if name not in apart}
    if not apart:
        return rest
    shapes = [jax.tree.map(np.shape, tree[name]) for name in apart]
    if any(x != shapes[0] for x in shapes):
        raise UserError(f"{source}: does not adapt the same modules in every layer, which a scanned model needs")
    return {**rest, "blocks": jax.tree.map(lambda *x: np.stack(x), *(tree[name] for name in apart))}
