"""Reads and writes adapters in Hugging Face PEFT's layout: adapter_config.json and adapter_model.safetensors.

method, tuned = load_adapter("path/to/adapter", config)       # LoRA, (IA)^3, prompts and prefixes
save_adapter("path/to/adapter", config, tuning, tuned)        # peft.PeftModel.from_pretrained reads it
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp import strict_json
from jaxnlp.errors import UserError, reading
from jaxnlp.interop import adapter_config, huggingface, ia3, lora, soft_prompts
from jaxnlp.interop.module_names import CONFIG, WEIGHTS, HFModule, layers_of, modules_of, opened
from jaxnlp.interop.tensor_files import read_tensors, write_tensors
from jaxnlp.paths import local
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.method import PEFTMethod
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt
from jaxnlp.peft.tuning import TunedModel, attach
from jaxnlp.scratch import UNCHANGED, move_files, scratch, write_errors
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
    with reading(local(folder), "its files are not an adapter of PEFT for this model, or damaged"):
        return _load_adapter(local(folder), config, base)


def _load_adapter(folder: pathlib.Path, config: Any, base: Any) -> tuple[PEFTMethod, Any]:
    fields = adapter_config.read(folder / CONFIG, KINDS)
    kind = fields["peft_type"]
    tensors = read_tensors(folder / WEIGHTS)
    hf_modules = modules_of(config)
    tensors = _checked_copies(folder / WEIGHTS, tensors, hf_modules, base)
    unrolled = dataclasses.replace(config, scan_layers=False) if config.scan_layers else config
    shapes, _ = abstract_params(unrolled.build(), *unrolled.example_inputs(1, 2))
    sizes = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(shapes)}
    if kind in soft_prompts.KINDS:
        method, leaves = soft_prompts.read(fields, tensors, config, folder / WEIGHTS)
    else:
        modules = _by_module(folder / WEIGHTS, tensors, hf_modules, fields)
        method, leaves = (lora.read if kind == "LORA" else ia3.read)(fields, modules, sizes, folder)
    if unrolled is not config:
        _check_layers(folder, leaves, sizes)
    tuned: Any = {}
    for path, x in leaves.items():
        tuned = set_at(tuned, path, x)
    tuned = stacked(tuned, folder) if unrolled is not config else tuned
    tuning = attach(method, config.build(), *config.example_inputs(1, 2))
    shapes_of = lambda tree: {path_name(at): x.shape for at, x in jax.tree_util.tree_leaves_with_path(tree)}
    expected_shapes = shapes_of(jax.eval_shape(lambda: tuning.init(jax.random.key(0), _zeros(tuning))))
    actual_shapes = shapes_of(tuned)
    for name in (expected_shapes | actual_shapes) if expected_shapes != actual_shapes else ():
        if expected_shapes.get(name) != actual_shapes.get(name):
            raise UserError(
                f"{folder}: parameter {name} has shape {actual_shapes.get(name, '(missing)')}; "
                f"{type(method).__name__} expects {expected_shapes.get(name, '(no such parameter)')}"
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
                    f"{folder}: the adapted modules differ between layers, which a scanned model does not support: "
                    f"{module} is adapted, {other} is not; load it with scan_layers=False"
                )


def _zeros(tuning: TunedModel) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tuning.shapes)


def _checked_copies(path, tensors: Mapping[str, np.ndarray], hf_modules: Mapping[str, HFModule], base: Any):
    """The tensors without copies of base parameters. Raises UserError if a copy differs: it is another base."""
    adapter_tensors = {}
    flat = {path_name(at): x for at, x in jax.tree_util.tree_leaves_with_path(huggingface.unstacked(base or {}))}
    for name, array in tensors.items():
        module, copied, _ = name.removeprefix(PREFIX).partition(f"{BASE}weight")
        if not copied:
            adapter_tensors[name] = array
            continue
        hf_module = hf_modules.get(module)
        if hf_module is None:
            raise UserError(f"{path}: tensor {name} matches no module of this model")
        if base is None:
            raise UserError(f"{path}: tensor {name} is a copy of a base parameter; pass base= to compare the two")
        parameter = hf_module.tensor.to_tensor([np.asarray(flat[name]) for name in hf_module.tensor.paths])
        if parameter.shape != array.shape or (parameter != array).any():
            raise UserError(
                f"{path}: tensor {name} differs from the base parameter; the adapter was trained on another base"
            )
    return adapter_tensors


def _by_module(path, tensors: Mapping[str, np.ndarray], hf_modules: Mapping[str, HFModule], fields: Mapping[str, Any]):
    """The tensors of a file by module: {module: (hf_module, {leaf: array})}.

    Args:
        tensors: named `base_model.model.<module>.<leaf>`.

    Raises:
        UserError: a module is not in the model, or does not have exactly the leaves of the adapter's kind.
    """
    without_prefix = lambda name: name.partition(".")[2]
    count = collections.Counter(map(without_prefix, hf_modules))  # an encoder and a decoder share names without prefix
    bare = {
        without_prefix(name): hf_module for name, hf_module in hf_modules.items() if count[without_prefix(name)] == 1
    }
    by_module: dict[str, tuple[HFModule, dict[str, np.ndarray]]] = {}
    for name, array in tensors.items():
        module, leaf = _split(name.removeprefix(PREFIX))
        hf_module = hf_modules.get(module) or bare.get(module)  # adapters of headless models lack the prefix
        if hf_module is None or not leaf:
            raise UserError(f"{path}: tensor {name} matches no module of this model")
        by_module.setdefault(module, (hf_module, {}))[1][leaf] = array
    for module, (hf_module, arrays) in by_module.items():
        expected = _kinds(fields, hf_module)
        if set(arrays) != set(expected):
            raise UserError(
                f"{path}: module {module} has tensors {', '.join(sorted(arrays))}; expected {', '.join(expected)} for "
                f"peft_type={fields['peft_type']!r} with use_dora={bool(fields.get('use_dora'))}"
            )
    return by_module


def _split(name: str) -> tuple[str, str]:
    """(module, leaf), as ("h.0.attn.c_attn", "lora_A"); (name, "") if it has no adapter leaf."""
    module, _, leaf = name.removesuffix(".weight").rpartition(".")
    return (module, leaf) if leaf.startswith(("lora_", "ia3_")) else (name, "")


def _kinds(fields: Mapping[str, Any], hf_module: HFModule) -> list[str]:
    """Names of the leaves that an adapted module has in a PEFT file."""
    if fields["peft_type"] == "IA3":
        return ["ia3_l"]
    if hf_module.tensor.kind == "table":
        return ["lora_embedding_A", "lora_embedding_B"]
    return ["lora_A", "lora_B", *(["lora_magnitude_vector"] if fields.get("use_dora") else [])]


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
        base_name: the base model's hub id or folder.
        task_type: PEFT's task type, as "CAUSAL_LM", by which its auto classes choose a model class.

    Raises:
        UserError: PEFT has no equivalent of the method or the model, or the folder cannot be written.
    """
    method = tuning.method
    if not isinstance(method, LoRA | IA3 | Prompt | Prefix):
        name = type(method).__name__
        raise UserError(
            f"{name}(): PEFT has no equivalent; expected one of LoRA(), IA3(), Prompt(), PTuning() and Prefix()"
        )
    if tuning.replaced:
        names = ", ".join("/".join(path) for path in tuning.replaced[:3])
        raise UserError(
            f"{folder}: the fully trained parameters {names} cannot be written in PEFT's layout, and the adapter needs "
            "them; merge the adapter into the model, or save all tuned parameters with jaxnlp.peft.files.save "
            "(experiments.export --adapter --out=NAME.safetensors)"
        )
    leaves = huggingface.unstacked(tuning.expanded(tuned))
    flat = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(leaves)}
    hf_modules = modules_of(config)
    if isinstance(method, LoRA):
        fields, arrays = lora.write(tuning, flat, hf_modules)
    else:
        is_ia3 = isinstance(method, IA3)
        fields, arrays = ia3.write(flat, hf_modules) if is_ia3 else soft_prompts.write(tuning, flat, config)
    fields |= {"base_model_name_or_path": base_name, "task_type": task_type, "inference_mode": True}
    folder = local(folder)
    with write_errors(folder, UNCHANGED), scratch(folder) as new:
        by_name = {name if name == soft_prompts.TABLE else PREFIX + name: x for name, x in arrays.items()}
        write_tensors(by_name, new / WEIGHTS)
        (new / CONFIG).write_text(strict_json.dumps(fields, indent=2) + "\n")
        move_files(new, folder, last=CONFIG)


def body_alone(config: Any, tuning: TunedModel, tuned: Any) -> tuple[Any, TunedModel, Any, list[str]]:
    """Drops the head of a tuned model, for `save_adapter`: (config, tuning, tuned, names of dropped parameters).

    Args:
        config: config of a `ModelWithHead` model; for any other, the arguments are returned unchanged.
        tuned: parameters of `tuning`.
    """
    if config.body is config:
        return config, tuning, tuned, []
    tuned = tuning.expanded(tuned)
    within_body = lambda by_path: {path[1:]: x for path, x in by_path.items() if path[0] == "trunk"}
    body_tuning = dataclasses.replace(
        tuning,
        targets={path: dataclasses.replace(x, path=path) for path, x in within_body(tuning.targets).items()},
        leaves=within_body(tuning.leaves),
        shared={},
        replaced=list(within_body(dict.fromkeys(tuning.replaced))),
        outer=tuning.outer[1:] if tuning.outer else None,
        shapes=tuning.shapes["trunk"],
        base_axes=tuning.base_axes["trunk"],
        blocks=within_body(tuning.blocks),
    )
    dropped = {name: x for name, x in tuned.items() if name != "trunk"}
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(dropped)]
    return config.body, body_tuning, tuned.get("trunk", {}), names


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
    blocks = sorted((name for name in tree if name.startswith("block_")), key=lambda name: int(name.split("_")[1]))
    stacked_tree = {name: stacked(x, source) for name, x in tree.items() if name not in blocks}
    if not blocks:
        return stacked_tree
    shapes = [jax.tree.map(np.shape, tree[name]) for name in blocks]
    if any(x != shapes[0] for x in shapes):
        raise UserError(f"{source}: the adapted modules differ between layers, which a scanned model does not support")
    return {**stacked_tree, "blocks": jax.tree.map(lambda *x: np.stack(x), *(tree[name] for name in blocks))}
