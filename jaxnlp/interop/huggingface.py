"""Reads and writes Hugging Face checkpoints: config.json, safetensors (one or several files), tokenizer.json.

  config, params, tokenizer = load("path/to/folder")     # or a hub id, as "openai-community/gpt2"
  save("path/to/folder", config, params, tokenizer)      # transformers' from_pretrained reads it

A family (`gpt2.py`, `bert.py`, ...) is a module with a table of tensors and the conversion of configs in both
directions. Every tensor must be present with its shape, and none may be left over: nothing is filled in or dropped
silently.
"""

import dataclasses
import fnmatch
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from jaxnlp import strict_json
from jaxnlp.errors import UserError, reading
from jaxnlp.interop import bert, gpt2, llama, t5
from jaxnlp.interop.config_defaults import with_defaults
from jaxnlp.interop.config_file import model_config
from jaxnlp.interop.source_files import DOCUMENTS, SourceFiles, exact_dtypes, merged_config, own_files, read_files
from jaxnlp.interop.tensor_files import (
    INDEX,
    SINGLE,
    files_of,
    open_tensors,
    read_json,
    read_tensor,
    write_tensors,
)
from jaxnlp.interop.tensor_names import bare_names, ignoring, stored, table_names
from jaxnlp.paths import expanded, local
from jaxnlp.scratch import UNCHANGED, move_files, scratch, write_errors
from jaxnlp.sharding.functional import abstract_params
from jaxnlp.sharding.rules import REPLICATED, Rules, path_name, shardings

FAMILIES = (gpt2, bert, llama, t5)
COPY_ROWS = 4096
CONFIG = "config.json"


def load(
    source: str | pathlib.Path, *, mesh: Any = None, rules: Rules = REPLICATED, ignore: Sequence[str] = ()
) -> tuple[Any, Any, Any]:
    """Loads a checkpoint as (config, params, tokenizer).

    Args:
        source: a folder, which needs no network, or a hub id, which needs `huggingface_hub`.
        mesh, rules: shardings of the parameters. Tensors are read and placed one at a time. mesh=None places all on
            the first device.
        ignore: patterns of tensors to leave out, as `classifier.*`.

    Returns:
        config: the model's config, e.g. a `GPTConfig`. params: nested dicts, float32. tokenizer: of the `tokenizers`
        library; None if the folder has neither tokenizer.json nor vocab.json with merges.txt.

    Raises:
        UserError: a missing folder, an architecture or setting that is not supported, or a tensor that is missing,
            left over, or of another shape.
    """
    folder, family, config, files = _open_folder(source)
    tokenizer = _tokenizer(folder)
    with reading(folder, f"its tensors do not fit its {CONFIG}, or are damaged"):
        return config, _params(folder, family, config, files, mesh, rules, ignore), tokenizer


def _params(folder, family, config, files, mesh: Any, rules: Rules, ignore: Sequence[str]) -> Any:
    """The parameters of an open folder; see `load`."""
    shapes, axes = abstract_params(config.build(), *config.example_inputs(1, 1))
    by_path = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    copies, skipped = family.copies(config), lambda name: any(fnmatch.fnmatchcase(name, glob) for glob in ignore)
    rows = table_names(files, family.tensors(config), copies, family.PREFIXES)
    tensors = stored(family.tensors(config), rows, copies, skipped)
    rows = {name: row for name, row in rows.items() if not skipped(name)}
    _check(folder, tensors, files, by_path, rows, [*family.ignored(config), *copies])
    _check_copies(tensors, files, rows, copies)
    places = {} if mesh is None else shardings(shapes, axes, rules, mesh)
    places = {path_name(path): place for path, place in jax.tree_util.tree_leaves_with_path(places)}
    first = jax.local_devices()[0]
    arrays = {}
    param_shapes = {path: leaf.shape for path, leaf in by_path.items()}
    for tensor in tensors:
        array = read_tensor(files[tensor.name], tensor.name)
        for path, part in tensor.to_params(array, param_shapes).items():
            part = np.asarray(part, by_path[path].dtype)
            arrays[path] = (
                jax.make_array_from_callback(part.shape, places[path], part.__getitem__)
                if places
                else (jax.device_put(part, first))
            )
        del array, part
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[path_name(path)], shapes)


def read_config(source: str | pathlib.Path) -> tuple[Any, Any]:
    """A checkpoint's (config, tokenizer), as in `load`, without reading the parameters."""
    folder, _, config, _ = _open_folder(source)
    return config, _tokenizer(folder)


def read_source(source: str | pathlib.Path, *, ignore: Sequence[str] = ()) -> SourceFiles:
    """A checkpoint's other files, and the names and dtypes of its tensors, for `save`. The arguments are as in `load`.

    A tensor that is stored only under the name of a copy is written under that name again.
    """
    folder, family, config, files = _open_folder(source)
    with reading(folder, f"its tensors do not fit its {CONFIG}, or are damaged"):
        return _source_files(folder, family, config, files, ignore)


def _source_files(folder: pathlib.Path, family: Any, config: Any, files: Any, ignore: Sequence[str]) -> SourceFiles:
    skipped = lambda name: any(fnmatch.fnmatchcase(name, glob) for glob in ignore)
    table, copies = family.tensors(config), family.copies(config)
    rows = table_names(files, table, copies, family.PREFIXES)
    places = {}
    for tensor, place in zip(table, stored(table, rows, copies, skipped), strict=True):
        if place.name in files:
            with open_tensors(files[place.name]) as file:
                places[tensor.name] = (place.name, str(file.get_slice(place.name).get_dtype()))
    return SourceFiles(read_files(folder), places)


def _open_folder(source: str | pathlib.Path) -> tuple[pathlib.Path, Any, Any, dict[str, pathlib.Path]]:
    """(folder, family, config, {tensor name: file}) of a checkpoint."""
    folder = local_folder(source)
    hf = read_json(folder / CONFIG)
    kind = hf.get("model_type")
    family = next((f for f in FAMILIES if kind in f.MODEL_TYPES), None)
    if family is None:
        model_types = ", ".join(name for f in FAMILIES for name in f.MODEL_TYPES)
        raise UserError(f"{folder / CONFIG}: model_type={kind!r} is not supported; expected one of {model_types}")
    files = files_of(folder)
    config = model_config(folder / CONFIG, hf, family, bare_names(files, family.PREFIXES))
    return folder, family, config, files


def save(
    folder: str | pathlib.Path,
    config: Any,
    params: Any,
    tokenizer: Any = None,
    *,
    special_ids: Mapping[str, int] = MappingProxyType({}),
    max_shard_bytes: int = 5 * 10**9,
    other_files: Mapping[str, str | bytes | None] = MappingProxyType({}),
    source: SourceFiles | None = None,
) -> None:
    """Writes a checkpoint that `load` and transformers' `from_pretrained` can read.

    Args:
        folder: created if missing. A checkpoint in it is replaced; other files stay.
        tokenizer: of the `tokenizers` library, or None.
        special_ids: special token ids by their names in config.json (`bos_token_id`, `eos_token_id`, `pad_token_id`,
            `decoder_start_token_id`). transformers uses its defaults for those left out.
        max_shard_bytes: maximum size of a safetensors file; larger checkpoints are split, with an index.
        other_files: contents by file name, written with the checkpoint or not at all; None removes an old file.
        source: the checkpoint that the model began from, of `read_source`. Its fields of config.json are kept where
            the model has not changed, and so are the names and dtypes of its tensors if its dtypes hold the present
            values exactly. The caller passes the files to keep as `other_files`.

    Raises:
        UserError: transformers has no class for the model, or the folder cannot be written.
    """
    family = family_of(config)
    if family is None:
        raise UserError(
            f"save: transformers has no class for this {type(config).__name__}{reason(config)}; "
            f"expected the components of one of {', '.join(name for f in FAMILIES for name in f.MODEL_TYPES)}"
        )
    flat = {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(unstacked(params))}
    tensors, dtype = family.tensors(config), str(next(iter(flat.values())).dtype)
    fields, places = {**family.to_json(config), **special_ids, "dtype": dtype}, {}
    if source is not None:
        fields, places = _as_in_source(
            source, family, config, fields, {t.name: [flat[p] for p in t.paths] for t in tensors}
        )
    folder = local(folder)
    with write_errors(folder, UNCHANGED), scratch(folder) as new:  # existing files stay until all new ones are complete
        _write_shards(new, list(_shards(tensors, flat, max_shard_bytes)), flat, places)
        _write_json(new / CONFIG, fields)
        if tokenizer is not None:
            (new / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        for name, content in other_files.items():
            if content is not None:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        old = own_files(folder, source) if (folder / CONFIG).is_file() else ()
        removed = (name for name, content in other_files.items() if content is None)
        move_files(new, folder, last=CONFIG, replaced=(SINGLE, *old, *removed))


def _as_in_source(
    source: SourceFiles, family: Any, config: Any, fields: dict[str, Any], arrays: Mapping[str, list[np.ndarray]]
) -> tuple[dict[str, Any], dict[str, tuple[str, Any]]]:
    """(config.json, {name in the table: (name in the file, dtype)}) of a model that began from a checkpoint.

    fields: what config.json is without a source. arrays: the parameters of each tensor, by its name in the table.
    """
    hf = source.json(CONFIG)
    if hf.get("model_type") not in family.MODEL_TYPES:
        return fields, {}
    names = bare_names((name for name, _ in source.tensors.values()), family.PREFIXES)
    read = family.to_json(family.config(with_defaults(hf), names))
    dtypes = exact_dtypes(source, arrays)
    dtype = fields.pop("dtype")
    merged = merged_config(hf, read, fields)
    if dtypes is None:
        stored_as = "torch_dtype" if "torch_dtype" in hf else "dtype"
        return {**merged, stored_as: dtype}, {}
    return merged, {name: (source.tensors[name][0], dtypes[name]) for name in arrays}


def _write_shards(folder: pathlib.Path, shards: Sequence[Any], flat: Mapping[str, np.ndarray], places: Any) -> None:
    """Writes groups of tensors as files, with an index if there are several. places: as in `_stored_array`."""
    weight_map, total = {}, 0
    for i, group in enumerate(shards):
        name = SINGLE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        arrays = dict(_stored_array(t, flat, places) for t in group)
        write_tensors(arrays, folder / name)
        weight_map |= dict.fromkeys(arrays, name)
        total += sum(x.nbytes for x in arrays.values())
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _stored_array(tensor: Any, flat: Mapping[str, np.ndarray], places: Mapping[str, tuple[str, Any]]) -> Any:
    """(name in the file, array) of a tensor."""
    array = tensor.to_tensor([flat[path] for path in tensor.paths])
    name, dtype = places.get(tensor.name, (tensor.name, array.dtype))
    return name, array.astype(dtype)


def family_of(config: Any) -> Any:
    """The family that one of our configs belongs to, or None."""
    return next((f for f in FAMILIES if f.accepts(config)), None)


def reason(config: Any) -> str:
    """Why a config belongs to no family, as ", because of field=value".

    Names the first field whose default value would make it belong to one; "" if there is none.
    """
    for field in dataclasses.fields(config):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if default is not dataclasses.MISSING and family_of(dataclasses.replace(config, **{field.name: default})):
            return f", because of {field.name}={vars(config)[field.name]!r}"
    return ""


def local_folder(source: str | pathlib.Path) -> pathlib.Path:
    """The folder of a checkpoint; a hub id is downloaded. Raises UserError if there is none."""
    source = expanded(source)
    path = pathlib.Path(source)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source}: not a folder; expected the folder of {CONFIG} and *.safetensors")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise UserError(f"{source}: no such folder; expected a folder with {CONFIG} and *.safetensors, or a hub id")
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", *(f"{name}*" for name in DOCUMENTS)]
        return pathlib.Path(snapshot_download(source, allow_patterns=patterns))
    except ImportError:
        raise UserError(f"{source}: no such folder, and hub ids need huggingface_hub: pip install -e '.[hf]'") from None
    except Exception as e:  # errors of the hub, or of the network
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(f"{source}: no such folder, and the download from the hub failed: {reason}") from None


def _check(folder, tensors, files, by_path, rows: Mapping[str, str], ignored) -> None:
    """Raises UserError if a tensor is missing, left over or of another shape.

    rows: {name in the checkpoint: name in the family's table}. ignored: patterns of the latter.
    """
    expected_tensors = {tensor.name: tensor for tensor in tensors}
    missing = [name for name in expected_tensors if name not in files]
    if missing:
        raise UserError(f"{folder}: tensor {missing[0]}{_more(missing)} is missing; {CONFIG} requires it")
    is_ignored = lambda name: any(re.fullmatch(pattern, rows[name]) for pattern in ignored)
    unexpected = [name for name in rows if name not in expected_tensors and not is_ignored(name)]
    if unexpected:
        raise UserError(
            f"{folder}: tensor {unexpected[0]}{_more(unexpected)} matches no parameter of this model; "
            f"skip it with {ignoring(unexpected[0])}"
        )
    filled = {path for tensor in tensors for path in tensor.paths}
    assert filled == set(by_path), filled ^ set(by_path)
    shapes = {path: leaf.shape for path, leaf in by_path.items()}
    for path in sorted({files[name] for name in expected_tensors}):
        with open_tensors(path) as file:
            for name, tensor in expected_tensors.items():
                if files[name] == path:
                    shape, expected = tuple(file.get_slice(name).get_shape()), tensor.shape(shapes)
                    if shape != expected:
                        raise UserError(f"{path}: tensor {name} has shape {shape}; {CONFIG} expects {expected}")


def _check_copies(tensors, files, rows: Mapping[str, str], copies: Mapping[str, str]) -> None:
    """Raises UserError if a tensor that should be a copy of another differs: tying them would change the model.

    rows: as in `_check`.
    """
    by_path = {path: tensor.name for tensor in tensors for path in tensor.paths}
    for name, row in rows.items():
        path = next((path for pattern, path in copies.items() if re.fullmatch(pattern, row)), None)
        first = by_path.get(path)
        if first in (None, name):
            continue
        with open_tensors(files[name]) as a, open_tensors(files[first]) as b:
            copy, original = a.get_slice(name), b.get_slice(first)
            num_rows = copy.get_shape()[0]
            same_shape = copy.get_shape() == original.get_shape()
            starts = range(
                0, num_rows if same_shape else 0, COPY_ROWS
            )  # compared in parts, as they are the largest tensors
            parts = [slice(start, min(start + COPY_ROWS, num_rows)) for start in starts]
            if not same_shape or any((copy[part] != original[part]).any() for part in parts):
                raise UserError(
                    f"{files[name]}: tensor {name} differs from {first}, which it should equal; set "
                    f"tie_word_embeddings to false in {CONFIG} if the two are not tied, or skip the tensor with "
                    f"{ignoring(name)}"
                )


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _shards(tensors, flat, limit) -> Iterator[list[Any]]:
    """Groups of consecutive tensors, each of at most `limit` bytes or with a single tensor."""
    group, size = [], 0
    for tensor in tensors:
        num_bytes = sum(flat[path].nbytes for path in tensor.paths)
        if group and size + num_bytes > limit:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += num_bytes
    yield group


def unstacked(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters with one subtree per layer (`block_0`, ...); scanned layers (`blocks`) are split."""
    flat = {}
    for name, subtree in params.items():
        if name == "blocks":
            count = jax.tree.leaves(subtree)[0].shape[0]
            flat |= {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], subtree) for i in range(count)}
        else:
            flat[name] = unstacked(subtree) if isinstance(subtree, dict) else subtree
    return flat


def _tokenizer(folder: pathlib.Path) -> Any:
    from jaxnlp.data.huggingface_tokenizer import byte_level_bpe, never_cut, read

    if (folder / "tokenizer.json").exists():
        return never_cut(read(folder / "tokenizer.json"))
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return byte_level_bpe(folder)
    return None


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    path.write_text(strict_json.dumps(value, indent=2) + "\n")
