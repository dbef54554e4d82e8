"""Saving and loading the tuned parameters of any PEFT method as one small file.

    save("topics.safetensors", tuning, tuned, base)
    tuning, tuned = load("topics.safetensors", base, module, tokens)

The format is safetensors. Tensors are named by path, e.g. "block_0/attention/query/lora_a". The header contains the
method's config as JSON and fingerprints of the base and of the tensors. `interop/adapters.py` reads and writes files of
Hugging Face PEFT.
"""

import contextlib
import json
import os
import pathlib
import uuid
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp import config as configs
from jaxnlp.errors import UserError
from jaxnlp.peft.method import PEFTMethod
from jaxnlp.peft.tuning import TunedModel, attach
from jaxnlp.sharding.rules import path_name
from jaxnlp.trees import select, set_at

FIELDS = ("method", "base", "tuned")  # of the header: every one is needed, and no other is known


def save(path: str | pathlib.Path, tuning: TunedModel, tuned: Any, base: Any) -> None:
    """Writes tuned parameters atomically: an existing file is replaced only when the new one is complete.

    Args:
        tuned: parameters of `tuning`, as full (unsharded) arrays.
        base: parameters of the base, or base and tuned joined. Base parameters that are tuned in place are ignored.

    Raises:
        UserError: the parameters belong to another model or method, or the file cannot be written.
    """
    path = pathlib.Path(path)
    arrays = {name: np.ascontiguousarray(x) for name, x in _flat(tuned).items()}
    _check("tuned", arrays, tuning)
    header = {
        "method": json.dumps(configs.to_dict(tuning.method)),
        "base": _base_of(tuning, base),
        "tuned": fingerprint(arrays),
    }
    data = _safetensors().save(arrays, header)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e}); what was there is as it was") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def load(
    path: str | pathlib.Path, base: Any, module: Any, *inputs: Any, method: PEFTMethod | None = None
) -> tuple[TunedModel, Any]:
    """Reads a file of `save`, bit-exactly: (tuning, tuned parameters on the first device).

    Args:
        base: parameters of the base. module, inputs: the model, as for `attach`.
        method: the expected method; None accepts the file's.

    Raises:
        UserError: the file is missing, of another kind or damaged, or it is for another method, model or base.
    """
    held, header, arrays = read(path)
    if method is not None and (changed := configs.diff({"method": held}, {"method": method})):
        field, was, wanted = changed[0]
        raise UserError(f"{path}: another method: {field} is {was!r} there, and {wanted!r} is asked for")
    own = tuple(name for name in _flat(base) if name in arrays)  # of the model itself, and trained
    try:
        tuning = attach(held, module, *inputs, head=own)
    except UserError as e:
        raise UserError(f"{path}: of another model: {e}") from None
    _check(str(path), arrays, tuning)
    if (found := _base_of(tuning, base)) != header["base"]:
        raise UserError(
            f"{path}: tuned on another base (fingerprint {header['base']}, and this one's is {found}); give the "
            "parameters that it was tuned on"
        )
    return tuning, jax.tree.map(jnp.asarray, nested(arrays))


def read(path: str | pathlib.Path) -> tuple[PEFTMethod, dict[str, str], dict[str, np.ndarray]]:
    """(method, header, arrays by path) of a file, without checking it against a model.

    Raises:
        UserError: the file is missing, of another kind or damaged, or its method has an unknown field.
    """
    path = pathlib.Path(path)
    library = _safetensors()
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}); expected what peft.files.save wrote") from None
    try:
        arrays = library.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except Exception as e:  # its own error type is not public
        raise UserError(f"{path}: not a safetensors file, or cut short ({e})") from None
    if odd := sorted(set(header) ^ set(FIELDS)):
        told = f"has an unknown field {odd[0]!r}" if odd[0] in header else f"lacks {odd[0]!r}"
        raise UserError(f"{path}: not a file of tuned parameters, or of a later version: its header {told}")
    if fingerprint(arrays) != header["tuned"]:
        raise UserError(f"{path}: damaged, its tensors are not those that were written")
    try:
        method = configs.from_dict(json.loads(header["method"]), "method")
    except (UserError, ValueError) as e:
        raise UserError(f"{path}: {e}") from None
    if not isinstance(method, PEFTMethod):
        raise UserError(f"{path}: its method is a {type(method).__name__}; expected one of jaxnlp.peft")
    return method, header, arrays


def fingerprint(tree: Any) -> str:
    """Hash of the arrays' bits as 8 hex digits (a sum modulo 2^32); independent of the mesh."""
    return f"{int(_sum_of_bits(tree)):08x}"


@jax.jit
def _sum_of_bits(tree: Any) -> jax.Array:
    total = jnp.uint32(0)
    for x in jax.tree.leaves(tree):
        bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
        total = total * jnp.uint32(0x01000193) + jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
    return total


def nested(arrays: dict[str, Any]) -> Any:
    """Arrays by path ("block_0/mlp/adapter_up") as nested dicts."""
    tree: Any = {}
    for name, x in arrays.items():
        tree = set_at(tree, tuple(name.split("/")), x)
    return tree


def _flat(tree: Any) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _base_of(tuning: TunedModel, base: Any) -> str:
    """Fingerprint of the frozen base parameters; equal to the one in a run's checkpoints.

    Raises:
        UserError: a parameter of the model is missing from `base`.
    """
    wanted = jax.eval_shape(tuning.frozen, tuning.shapes)
    told = lambda tree: (jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)])
    try:
        held = select(base, wanted)  # as a run has it: in the method's `base_dtype`
        return fingerprint(held if told(held) == told(wanted) else tuning.frozen(select(base, tuning.shapes)))
    except KeyError as e:
        raise UserError(f"base: has no {e}; expected the parameters of the model that is tuned") from None


def _check(told: str, arrays: dict[str, np.ndarray], tuning: TunedModel) -> None:
    """Raises UserError for the first tensor that is missing, unexpected, or of another shape or dtype."""
    wanted = _flat(jax.eval_shape(tuning.init, jax.random.key(0), tuning.shapes))
    kind = type(tuning.method).__name__
    for name in sorted({*wanted, *arrays}):
        if name not in wanted:
            raise UserError(f"{told}: {name} is nothing that {kind}() tunes in this model")
        if name not in arrays:
            raise UserError(f"{told}: has no {name}, which {kind}() tunes in this model")
        found, expected = (f"{x.dtype}{list(x.shape)}" for x in (arrays[name], wanted[name]))
        if found != expected:
            raise UserError(f"{told}: {name} is {found}; {kind}() in this model asks for {expected}")


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError("safetensors is not installed: pip install 'jaxnlp[hf]'") from None
    return safetensors.numpy
