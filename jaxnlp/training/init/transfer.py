"""Initialises the tuned parameters of a PEFT run from another run or a file: `Experiment.init_peft_from`.

Soft prompt transfer (SPoT: Vu et al. 2022, arXiv:2110.07904) initialises the prompt of a task with one tuned on another
task; adapters and low-rank updates are transferred in the same way. Prompts that a network produces in the source
(`PTuning`, `Prefix` with `hidden_dim`) become plain vectors, unless the target has such a network too. This happens
only at step 0: a run that resumes reads its own checkpoint and needs no source.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.config import field_values
from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.kernels import Einsum
from jaxnlp.optim import make_optimizer
from jaxnlp.peft import files
from jaxnlp.peft.method import SHARED, PEFTMethod
from jaxnlp.peft.tuning import TunedModel, attach
from jaxnlp.sharding.functional import abstract_params
from jaxnlp.sharding.rules import path_name
from jaxnlp.training.init.frozen_base import BASE
from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.step.program import Program, heads
from jaxnlp.training.step.state import TrainState

FIELD = "init_peft_from"
TRUNK = "trunk/"  # a fine-tuned model's layers have this in front, a language model's have not


@dataclasses.dataclass(frozen=True)
class Source:
    """Tuned parameters from elsewhere. name: for messages. arrays: by path. base: fingerprint of their base."""

    name: str
    tuning: TunedModel
    arrays: dict[str, Any]
    base: str


def transferred(program: Program, state: TrainState, tell: Callable[[str], Any]) -> TrainState:
    """The state at step 0 with the tuned parameters of `init_peft_from`, if it is set. Heads stay freshly initialised.

    Raises:
        UserError: nothing to load there, or parameters of another method, model or shape.
    """
    path, tuning = program.experiment.init_peft_from, program.tuning
    if path is None:
        return state
    assert tuning is not None, "Experiment.check demands a method"
    source = _of_file(path, program) if pathlib.Path(path).is_file() else _of_run(path, program, tell)
    wanted = _without_heads(tuning, _flat(program.abstract.params))
    arrays = source.arrays
    if not any(name.startswith(f"{SHARED}/") for name in wanted):
        arrays = _flat(source.tuning.expanded(files.nested(arrays)))
    given = _without_heads(source.tuning, arrays)
    _check(source, given, tuning, wanted)
    if source.base != files.fingerprint(state.frozen):
        tell(f"note: {source.name} was tuned on another base than this run's")

    def one(path: Any, leaf: Any) -> Any:
        name = path_name(path).removeprefix(TRUNK)
        if name not in given:
            return leaf
        x = np.asarray(given[name])
        return jax.make_array_from_callback(x.shape, leaf.sharding, x.__getitem__)

    params = jax.tree_util.tree_map_with_path(one, state.params)
    e = program.experiment
    optimizer, _ = make_optimizer(e.optim, e.num_steps, program.axes, tuning.rates(params))
    layout = jax.tree.map(lambda x: x.sharding, program.abstract.opt_state)
    tell(f"tuning begins from {source.name}: {len(given)} parameters of its {type(source.tuning.method).__name__}()")
    return dataclasses.replace(state, params=params, opt_state=jax.jit(optimizer.init, out_shardings=layout)(params))


def _of_file(path: str, program: Program) -> Source:
    method, header, arrays = files.read(path)
    e = program.experiment
    try:
        tuning = attach(dataclasses.replace(method, modules_to_save=(), base_dtype=None), *_module(e.model))
    except UserError as error:
        raise UserError(f"{FIELD}={path!r}: of another model: {error}") from None
    return Source(path, tuning, arrays, header["base"])


def _of_run(path: str, program: Program, tell: Callable[[str], Any]) -> Source:
    reader = Reader(path)
    step = reader.newest(lambda step, e: tell(f"note: {path}: the checkpoint of step {step} is damaged ({e})"))
    if step is None:
        raise FieldError(FIELD, path, "no checkpoint of a run here, and no file of peft/files.py; tune one first")
    saved = reader.read(step)
    method = saved.experiment.peft
    if not isinstance(method, PEFTMethod):
        raise FieldError(FIELD, path, "this run trained its model, and tuned nothing beside it; use init_from")
    method = dataclasses.replace(method, base_dtype=None)
    module, *inputs = _module(saved.experiment.model)
    shapes, _ = abstract_params(module, *inputs)
    tuning = attach(method, module, *inputs, head=heads(shapes))
    whole = NamedSharding(program.mesh, PartitionSpec())
    target = jax.eval_shape(tuning.init, jax.random.key(0), shapes)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), target)
    tuned = reader.restore_item(step, "params", target)
    return Source(f"{path}, step {step:,}", tuning, _flat(tuned), saved.data[BASE])


def _module(model: Any) -> tuple[Any, ...]:
    """(module, *example inputs), with attention that runs on every platform, which changes no parameter."""
    plain = model if model.attention is None else model.with_body(attention=Einsum())
    return plain.build(), *plain.example_inputs(1, 2)


def _without_heads(tuning: TunedModel, arrays: dict[str, Any]) -> dict[str, Any]:
    """Tuned parameters by their path below the trunk, without those of heads."""
    tops = tuple(pattern.removesuffix("*") for pattern in heads(tuning.shapes))
    return {name.removeprefix(TRUNK): x for name, x in arrays.items() if not name.startswith(tops)}


def _check(source: Source, given: dict[str, Any], tuning: TunedModel, wanted: dict[str, Any]) -> None:
    there, here = source.tuning.method, tuning.method
    fields = here.computes if type(there) is type(here) else ()
    for field, value in field_values(here, *fields).items() if fields else ():
        source_value = field_values(there, field)[field]
        if source_value != value:
            difference = f"{field}={source_value!r} there, and {value!r} in this run"
            raise UserError(f"{FIELD}: {source.name} does not fit: {type(here).__name__}() has {difference}")
    theirs, ours = (f"{type(method).__name__}()" for method in (there, here))
    for name in sorted({*given, *wanted}):
        if name not in given or name not in wanted:
            which = "latter" if name in wanted else "former"
            told = f"it has {theirs} and this run has {ours}; {name} is of the {which} alone"
            raise UserError(f"{FIELD}: {source.name} does not fit: {told}")
        if given[name].shape != wanted[name].shape:
            told = f"{given[name].shape} there, and this run asks for {wanted[name].shape}"
            raise UserError(f"{FIELD}: {source.name} does not fit: {name} is {told}")


def _flat(tree: Any) -> dict[str, Any]:
    return {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
