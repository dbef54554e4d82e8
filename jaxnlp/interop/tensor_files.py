"""Safetensors files: which tensors a folder holds, and in which file; hints for weights in another format."""

import fnmatch
import json
import pathlib
from typing import Any

import numpy as np

from jaxnlp.errors import UserError, reading, reason

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = r"model-\d{5}-of-\d{5}\.safetensors"
"""A regular expression of the names of the files that an index names."""
PICKLES = ("pytorch_model*.bin*", "adapter_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt")
OTHER_FORMATS = {"*.h5": "TensorFlow weights", "*.msgpack": "Flax weights", "*.gguf": "a GGUF file"}
NOT_WEIGHTS = ("training_args.*", "optimizer*", "scheduler*", "rng_state*", "scaler*")  # of transformers' Trainer


def files_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file that holds each tensor of a checkpoint, in one file or in several with an index.

    Raises:
        UserError: there are none, or a file or the index cannot be read.
    """
    if (folder / SINGLE).exists():  # as in transformers, also where there is an index
        return dict.fromkeys(_names(folder / SINGLE), folder / SINGLE)
    if not (folder / INDEX).exists():
        shard = next((f"; {path.name} needs one of these names" for path in folder.glob("*.safetensors")), "")
        raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} exists{shard or hint(folder)}")
    places = _weight_map(folder / INDEX)
    names = {file: _names(folder / file) for file in sorted(set(places.values()))}
    return {name: folder / file for file, names_in_file in names.items() for name in names_in_file}


def _weight_map(path: pathlib.Path) -> dict[str, str]:
    """{tensor: file} of an index."""
    index = read_json(path)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise UserError(f"{path}: weight_map={str(places)[:60]}: expected an object of tensor and file names")
    return places


def hint(folder: pathlib.Path) -> str:
    """What a folder without safetensors holds instead, and what to do, as "; ..."; "" if there is none."""
    names = sorted(path.name for path in folder.glob("*"))
    if fnmatch.filter(names, "*.safetensors"):
        return ""
    weights = [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in NOT_WEIGHTS)]
    formats = {**dict.fromkeys(PICKLES, "a pickle"), **OTHER_FORMATS}
    for pattern, kind in formats.items():
        if others := fnmatch.filter(weights, pattern):
            library = "PEFT" if others[0].startswith("adapter") else "transformers"
            remedy = f"convert it with save_pretrained of {library}"
            return f"; {others[0]} is {kind}, which is not supported: {remedy}"
    return ""


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, by name. Raises UserError if it is missing or not a safetensors file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file{hint(path.parent)}")
    return {name: read_tensor(path, name) for name in _names(path)}


def read_tensor(path: pathlib.Path, name: str) -> np.ndarray:
    with reading(path, f"tensor {name} cannot be read"), open_tensors(path) as file:
        return file.get_tensor(name)


def open_tensors(path: pathlib.Path) -> Any:
    """The open file of the `safetensors` library. Raises UserError if it is missing or not a safetensors file."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise UserError("safetensors is not installed: pip install -e '.[hf]'") from None
    if not path.is_file():
        raise UserError(f"{path}: no such file; {INDEX} names it, so the checkpoint is incomplete")
    try:
        return safe_open(path, framework="numpy")
    except Exception as e:  # safetensors' error type is not public
        raise UserError(f"{path}: not a safetensors file, or truncated ({reason(e)})") from None


def _names(path: pathlib.Path) -> list[str]:
    with open_tensors(path) as file:
        return list(file.keys())


def write_tensors(arrays: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Writes a safetensors file. Raises OSError if it cannot be written."""
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise UserError("safetensors is not installed: pip install -e '.[hf]'") from None
    try:
        save_file({k: np.ascontiguousarray(x) for k, x in arrays.items()}, path, metadata={"format": "pt"})
    except Exception as e:  # safetensors' error type is not public and hides the OSError
        raise OSError(str(e).rpartition("error: ")[2]) from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError if the file is missing or does not hold one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        expected = "expected a checkpoint in Hugging Face's layout"
        raise UserError(f"{path}: cannot be read ({e.strerror}); {expected}{hint(path.parent)}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: invalid JSON ({reason(e)})") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(data).__name__}")
    return data
