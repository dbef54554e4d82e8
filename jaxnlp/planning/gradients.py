"""Compiles the gradient function of an experiment without the update, to measure activation and gradient memory.

The memory analysis of the full step mixes activations with the optimizer's temporaries. Nothing is executed.
"""

from typing import Any

import jax

from jaxnlp.planning.dry_run import abstract_gradients
from jaxnlp.planning.planner import compiled_memory, step_batch
from jaxnlp.training.step.program import Program
from jaxnlp.training.step.step import sum_gradients


def lowered_gradients(program: Program) -> Any:
    """The lowered function (params, batch) -> gradients, in the parameters' dtypes and with the step's shardings."""
    e, specs = program.experiment, abstract_gradients(program)
    layout = jax.tree.map(lambda x: x.sharding, specs)

    def gradients(params, batch):
        rows = e.objective.prepare(batch)
        place = None if program.mesh.size == 1 else layout
        _, grads = sum_gradients(
            program.apply, e.objective, params, rows, jax.random.key(0), e.accum_steps, layout=place
        )
        return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, specs)

    with program.context():
        return jax.jit(gradients, out_shardings=layout).lower(program.abstract.params, step_batch(program))


def compiled_bytes(lowered: Any, *, fast: bool = False) -> dict[str, int] | None:
    """Memory analysis of a lowered function (`planner.compiled_memory`); None if it does not fit in memory.

    Args:
        fast: compile with low optimisation effort: half the time, more temporaries, the same arguments and outputs.
    """
    try:
        options: dict[str, Any] | None = {"exec_time_optimization_effort": -1.0} if fast else None
        return compiled_memory(lowered.compile(compiler_options=options).memory_analysis())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
