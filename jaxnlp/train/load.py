"""A trained run, from its folder alone."""

import dataclasses
import math
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

from jaxnlp.errors import FieldError, UserError
from jaxnlp.generate import layout
from jaxnlp.generate.decode import Generator
from jaxnlp.nn.policy import Policy
from jaxnlp.sharding.axes import abstract_params, make_apply
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import as_tuple
from jaxnlp.train.checkpoint import Reader, Saved
from jaxnlp.train.program import Program, build


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint's config, tokenizer and parameters, and the program over this machine's devices."""

    saved: Saved
    program: Program
    params: Any

    def generator(self) -> Generator:
        return make_generator(self.program, self.saved.tokenizer)


def load(workdir: str | pathlib.Path, checkpoint: str = "latest") -> Loaded:
    """Reads a run's parameters.

    Args:
        workdir: the run's folder. checkpoint: "latest" (the newest that is whole), "best" (lowest
            validation loss) or a step.

    The devices need not be those of the training: a mesh that does not fit them gives way to
    one with all of them on its data axis.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    reader = Reader(workdir)
    step = _choose(reader, workdir, checkpoint)
    saved = reader.read(step)
    try:
        program = build(saved.experiment)
    except UserError:
        mesh = MeshConfig()
        rows = -(-saved.experiment.data.batch_size // jax.device_count()) * jax.device_count()
        print(
            f"note: the run's mesh does not fit these {jax.device_count()} devices; using data={jax.device_count()}",
            file=sys.stderr,
        )
        sharding = dataclasses.replace(saved.experiment.sharding, mesh=mesh)
        data = dataclasses.replace(saved.experiment.data, batch_size=rows)
        experiment = dataclasses.replace(saved.experiment, sharding=sharding, data=data, accum_steps=1)
        saved = dataclasses.replace(saved, experiment=experiment)
        program = build(experiment)
    return Loaded(saved, program, reader.restore_item(step, "params", program.abstract.params))


def _choose(reader: Reader, workdir: str | pathlib.Path, checkpoint: str) -> int:
    steps = reader.steps()
    if not steps:
        raise UserError(
            f"--workdir={workdir}: no checkpoint here; train one with: "
            f"python -m experiments.train --config=FILE --workdir={workdir}"
        )
    if checkpoint == "latest":
        tell = lambda step, error: print(f"note: the checkpoint of step {step} is damaged ({error})", file=sys.stderr)
        found = reader.newest(tell)
        assert found is not None
        return found
    if checkpoint == "best":
        best = reader.best()
        if best is None:
            raise UserError(
                f"--checkpoint=best: none in {workdir} has a validation loss; use latest, or a step of {steps}"
            )
        reader.verify(best)
        return best
    if not checkpoint.isdigit() or int(checkpoint) not in steps:
        raise FieldError(
            "--checkpoint", checkpoint, f"expected latest, best, or a step of {', '.join(map(str, steps))}"
        )
    reader.verify(int(checkpoint))
    return int(checkpoint)


def make_generator(program: Program, tokenizer: Any) -> Generator:
    """A generator for a program's model. Rows are split over the devices if they divide, else each does them all."""
    model, sharding = program.experiment.model, program.experiment.sharding

    def context(rows: int) -> Any:
        ways = math.prod(program.mesh.shape[axis] for axis in as_tuple(sharding.activations.get("batch")))
        return program.context() if rows % ways == 0 else program.context(batch=None)

    generator = Generator(
        program.apply, model.make_cache, model.longest, tokenizer.separator, tokenizer.vocab_size, context
    )
    one_cpu = program.mesh.size == 1 and program.mesh.devices.flat[0].platform == "cpu"
    return _output_major(generator, program) if one_cpu and isinstance(_policy(model), Policy) else generator


def _policy(model: Any) -> Any:
    return getattr(model, "policy", None)


def _output_major(generator: Generator, program: Program) -> Generator:
    """The generator with its weights laid out as one CPU reads them fastest."""
    model = program.experiment.model
    policy = dataclasses.replace(model.policy, weight_layout="output_major")
    module = dataclasses.replace(model, policy=policy).module()
    shapes, axes = abstract_params(module, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    lay_out = jax.jit(lambda params: layout.output_major(params, shapes, axes))
    newest: list[Any] = [None, None]

    def hold(params: Any) -> Any:
        if newest[0] is not params:
            newest[:] = params, lay_out(params)
        return newest[1]

    return dataclasses.replace(generator, apply=make_apply(module), hold=hold)
