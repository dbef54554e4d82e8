"""Floating-point operations of a training step, without recomputation: the numerator of MFU."""

import dataclasses

import jax

from jaxnlp.nn.jaxpr_flops import jaxpr_flops
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.experiment import abstract_batch, flops_per_token
from jaxnlp.training.step.program import Program, build


def step_flops(program: Program) -> float:
    """FLOPs of the model in one step, summed over all devices, without recomputation.

    For full training this is the model's own figure (`flops_per_token`): three forward passes. Parameters that are not
    trained have no gradient, so for a PEFT run the derivative is traced and counted instead.
    """
    e = program.experiment
    if program.tuning is None:
        return flops_per_token(e) * e.data.batch_size * e.data.seq_len
    if e.model.body.remat not in (None, "none"):
        e = dataclasses.replace(e, model=e.model.with_body(remat="none"))
    device = [program.mesh.devices.flat[0]]
    single = build(dataclasses.replace(e, sharding=Sharding().over()), device, only_traced=True)
    batch = abstract_batch(e, e.data.batch_size // e.accum_steps)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def gradients(state, batch, key):
        model_of = lambda params: dataclasses.replace(state, params=params).all_params
        loss = lambda params: e.objective.loss(single.apply, model_of(params), e.objective.prepare(batch), key)[0]
        return jax.grad(loss)(state.params)

    with single.context():
        return e.accum_steps * jaxpr_flops(jax.make_jaxpr(gradients)(single.abstract, batch, key))
