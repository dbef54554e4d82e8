"""Initialises the tuned parameters of a PEFT run from another run or a file: `Experiment.init_peft_from`.

Soft prompt transfer (SPoT: Vu et al. 2022, arXiv:2110.07904) initialises the prompt of a task with one tuned on another
task; adapters and low-rank updates are transferred in the same way. Prompts that a network produces in the source
(`PTuning`, `Prefix` with `hidden_dim`) become plain vectors, unless the target has such a network too. This happens
only at step 0: a run that resumes reads its own checkpoint and needs no source.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.config import field_values
from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.kernels import Einsum
from jaxnlp.optim import make_optimizer
from jaxnlp.paths import expanded, local
from jaxnlp.peft import files
from jaxnlp.peft.method import SHARED, PEFTMethod
from jaxnlp.peft.tuning import TunedModel, attach
from jaxnlp.sharding.functional import abstract_params
from jaxnlp.sharding.rules import path_name
from jaxnlp.training.init.frozen_base import BASE
from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.step.program import Program, head_patterns
from jaxnlp.training.step.state import TrainState

FIELD = "init_peft_from"
TRUNK = "trunk/"  # prefix of the layers of a fine-tuned model; a language model has none


@dataclasses.dataclass(frozen=True)
class TunedSource:
    """Tuned parameters from elsewhere. name: for messages. arrays: by path. base: fingerprint of their base."""

    name: str
    tuning: TunedModel
    arrays: dict[str, np.ndarray]
    base: str


def transfer_params(program: Program, state: TrainState, log: Callable[[str], Any]) -> TrainState:
    """The state at step 0 with the tuned parameters of `init_peft_from`, if it is set. Heads stay freshly initialised.

    Raises:
        UserError: nothing to load there, or parameters of another method, model or shape.
    """
    path, tuning = program.experiment.init_peft_from, program.tuning
    if path is None:
        return state
    assert tuning is not None, "Experiment.check requires a method"
    path = expanded(path)
    source = _of_file(path, program) if local(path).is_file() else _of_run(path, program, log)
    target_arrays = _without_heads(tuning, _flat(program.abstract.params))
    arrays = source.arrays
    if not any(name.startswith(f"{SHARED}/") for name in target_arrays):
        arrays = _flat(source.tuning.expanded(files.nested(arrays)))
    source_arrays = _without_heads(source.tuning, arrays)
    _check(source, source_arrays, tuning, target_arrays)
    if source.base != files.fingerprint(state.frozen):
        log(f"note: {source.name} was tuned on a base other than this run's")

    def replaced(path: Any, leaf: Any) -> Any:
        name = path_name(path).removeprefix(TRUNK)
        if name not in source_arrays:
            return leaf
        x = np.asarray(source_arrays[name])
        return jax.make_array_from_callback(x.shape, leaf.sharding, x.__getitem__)

    params = jax.tree_util.tree_map_with_path(replaced, state.params)
    e = program.experiment
    optimizer, _ = make_optimizer(e.optim, e.num_steps, program.axes, tuning.rates(params))
    layout = jax.tree.map(lambda x: x.sharding, program.abstract.opt_state)
    kind = type(source.tuning.method).__name__
    log(f"tuning initialised from {source.name}: {len(source_arrays)} parameters of its {kind}()")
    return dataclasses.replace(state, params=params, opt_state=jax.jit(optimizer.init, out_shardings=layout)(params))


def _of_file(path: str, program: Program) -> TunedSource:
    method, header, arrays = files.read(path)
    e = program.experiment
    try:
        tuning = attach(dataclasses.replace(method, modules_to_save=(), base_dtype=None), *_module(e.model))
    except UserError as error:
        raise UserError(f"{FIELD}={path!r}: saved for another model: {error}") from None
    return TunedSource(path, tuning, arrays, header["base"])


def _of_run(path: str, program: Program, log: Callable[[str], Any]) -> TunedSource:
    reader = Reader(path)
    step = reader.newest(lambda step, e: log(f"note: {path}: the checkpoint of step {step} is damaged ({e})"))
    if step is None:
        raise FieldError(FIELD, path, "neither the folder of a run nor a file of peft/files.py; tune a model first")
    saved = reader.read(step)
    method = saved.experiment.peft
    if not isinstance(method, PEFTMethod):
        raise FieldError(FIELD, path, "this run has no PEFT method; use init_from")
    method = dataclasses.replace(method, base_dtype=None)
    module, *inputs = _module(saved.experiment.model)
    shapes, _ = abstract_params(module, *inputs)
    tuning = attach(method, module, *inputs, head=head_patterns(shapes))
    replicated = NamedSharding(program.mesh, PartitionSpec())
    target = jax.eval_shape(tuning.init, jax.random.key(0), shapes)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), target)
    tuned = reader.restore_item(step, "params", target)
    return TunedSource(f"{path}, step {step:,}", tuning, _flat(tuned), saved.data[BASE])


def _module(model: Any) -> tuple[Any, ...]:
    """(module, *example inputs), with attention that runs on every platform, which changes no parameter."""
    plain = model if model.attention is None else model.with_body(attention=Einsum())
    return plain.build(), *plain.example_inputs(1, 2)


def _without_heads(tuning: TunedModel, arrays: dict[str, Any]) -> dict[str, Any]:
    """Tuned parameters by their path in the body, without those of heads."""
    tops = tuple(pattern.removesuffix("*") for pattern in head_patterns(tuning.shapes))
    return {name.removeprefix(TRUNK): x for name, x in arrays.items() if not name.startswith(tops)}


def _check(source: TunedSource, arrays: dict[str, Any], tuning: TunedModel, expected: dict[str, Any]) -> None:
    """Raises UserError if the source's arrays are not those that the run expects."""
    source_method, method = source.tuning.method, tuning.method
    fields = method.computation_fields if type(source_method) is type(method) else ()
    for field, value in field_values(method, *fields).items() if fields else ():
        source_value = field_values(source_method, field)[field]
        if source_value != value:
            difference = f"{field}={source_value!r} in the source and {value!r} in this run"
            raise UserError(f"{FIELD}: {source.name} does not fit: {type(method).__name__}() has {difference}")
    kinds = [f"{type(m).__name__}()" for m in (source_method, method)]
    for name in sorted({*arrays, *expected}):
        if name not in arrays or name not in expected:
            owner = "the run" if name in expected else "the source"
            message = f"it has {kinds[0]} and this run has {kinds[1]}; only {owner} has {name}"
            raise UserError(f"{FIELD}: {source.name} does not fit: {message}")
        if arrays[name].shape != expected[name].shape:
            message = f"{name} has shape {arrays[name].shape}, expected {expected[name].shape}"
            raise UserError(f"{FIELD}: {source.name} does not fit: {message}")


def _flat(tree: Any) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
