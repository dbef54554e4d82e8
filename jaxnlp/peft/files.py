"""Saving and loading the tuned parameters of any PEFT method as one small file.

    save("topics.safetensors", tuning, tuned, base)
    tuning, tuned = load("topics.safetensors", base, module, tokens)

The format is safetensors. Tensors are named by path, e.g. "block_0/attention/query/lora_a". The header contains the
method's config as JSON and fingerprints of the base and of the tensors. `interop/adapters.py` reads and writes files of
Hugging Face PEFT.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp import config as configs
from jaxnlp import strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local
from jaxnlp.peft.method import PEFTMethod
from jaxnlp.peft.tuning import TunedModel, attach
from jaxnlp.scratch import replacing
from jaxnlp.sharding.rules import path_name
from jaxnlp.trees import select, set_at

FIELDS = ("method", "base", "tuned")  # of the header: all are required, and no other is allowed


def save(path: str | pathlib.Path, tuning: TunedModel, tuned: Any, base: Any) -> None:
    """Writes tuned parameters atomically: an existing file is replaced only when the new one is complete.

    Args:
        tuned: parameters of `tuning`, as full (unsharded) arrays.
        base: parameters of the base, or base and tuned joined. Base parameters that are tuned in place are ignored.

    Raises:
        UserError: the parameters belong to another model or method, or the file cannot be written.
    """
    path = local(path)
    arrays = {name: np.ascontiguousarray(x) for name, x in _flat(tuned).items()}
    _check("tuned", arrays, tuning)
    header = {
        "method": strict_json.dumps(configs.to_dict(tuning.method)),
        "base": _base_of(tuning, base),
        "tuned": fingerprint(arrays),
    }
    data = _safetensors().save(arrays, header)
    with replacing(path) as new:
        new.write_bytes(data)


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
    saved_method, header, arrays = read(path)
    if method is not None and (changed := configs.diff({"method": saved_method}, {"method": method})):
        field, saved_value, expected_value = changed[0]
        raise UserError(f"{path}: saved with another method: {field} is {saved_value!r}, expected {expected_value!r}")
    trained = tuple(name for name in _flat(base) if name in arrays)  # the model's own parameters that are trained
    try:
        tuning = attach(saved_method, module, *inputs, head=trained)
    except UserError as e:
        raise UserError(f"{path}: saved for another model: {e}") from None
    _check(str(path), arrays, tuning)
    if (base_hash := _base_of(tuning, base)) != header["base"]:
        raise UserError(
            f"{path}: tuned on another base (fingerprint {header['base']}, got {base_hash}); pass the "
            "parameters that it was tuned on"
        )
    return tuning, jax.tree.map(jnp.asarray, nested(arrays))


def read(path: str | pathlib.Path) -> tuple[PEFTMethod, dict[str, str], dict[str, np.ndarray]]:
    """(method, header, arrays by path) of a file, without checking it against a model.

    Raises:
        UserError: the file is missing, of another kind or damaged, or its method has an unknown field.
    """
    path = local(path)
    library = _safetensors()
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UserError(
            f"{path}: cannot be read ({e.strerror or e}); expected a file written by peft.files.save"
        ) from None
    try:
        arrays = library.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    except Exception as e:  # the library's error type is not public
        raise UserError(f"{path}: not a safetensors file, or cut short ({e})") from None
    if odd := sorted(set(header) ^ set(FIELDS)):
        reason = f"has an unknown field {odd[0]!r}" if odd[0] in header else f"lacks {odd[0]!r}"
        raise UserError(f"{path}: not a file of tuned parameters, or of a later version: its header {reason}")
    if fingerprint(arrays) != header["tuned"]:
        raise UserError(f"{path}: damaged: its tensors do not match the fingerprint in its header")
    try:
        method = configs.from_dict(strict_json.loads(header["method"]), "method")
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
    expected = jax.eval_shape(tuning.frozen, tuning.shapes)
    signature = lambda tree: (jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)])
    try:
        params = select(base, expected)  # in a run they already have the method's `base_dtype`
        return fingerprint(
            params if signature(params) == signature(expected) else tuning.frozen(select(base, tuning.shapes))
        )
    except KeyError as e:
        raise UserError(f"base: has no {e}; expected the parameters of the tuned model") from None


def _check(source: str, arrays: dict[str, np.ndarray], tuning: TunedModel) -> None:
    """Raises UserError for the first tensor that is missing, unexpected, or of another shape or dtype."""
    specs = _flat(jax.eval_shape(tuning.init, jax.random.key(0), tuning.shapes))
    kind = type(tuning.method).__name__
    for name in sorted({*specs, *arrays}):
        if name not in specs:
            raise UserError(f"{source}: unexpected tensor {name}, which {kind}() does not tune in this model")
        if name not in arrays:
            raise UserError(f"{source}: missing tensor {name}, which {kind}() tunes in this model")
        actual, expected = (f"{x.dtype}{list(x.shape)}" for x in (arrays[name], specs[name]))
        if actual != expected:
            raise UserError(f"{source}: {name} is {actual}; expected {expected} for {kind}() in this model")


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError("safetensors is not installed: pip install -e '.[hf]'") from None
    return safetensors.numpy
