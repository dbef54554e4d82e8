"""One train step: accumulation equals the full batch, meshes equal one device, and non-finite gradients are skipped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.packing import FILL, pack
from jaxnlp.errors import UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.policy import Policy
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.optim import OPTIMIZERS, OptimConfig
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.presets import ZERO3
from jaxnlp.sharding.rules import FSDP, TENSOR, Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build
from jaxnlp.training.step.state import from_saved_trees, new_state, saved_trees
from jaxnlp.training.step.step import make_step, next_scaling

SEP = 16


def experiment(**fields) -> Experiment:
    model = GPTConfig(vocab_size=32, max_length=16, num_layers=2, num_heads=4, embed_dim=16, **fields.pop("model", {}))
    data = DataConfig(seq_len=16, batch_size=8)
    optim = fields.pop("optim", OptimConfig(learning_rate=1e-2, schedule="constant"))
    return Experiment(model=model, data=data, optim=optim, num_steps=10, **fields)


def batch(seed=0, ragged=True):
    """Packed documents whose rows end in padding of different lengths."""
    random = np.random.default_rng(seed)
    windows = random.integers(0, 16, (8, 17)).astype(np.int32)
    windows[random.random((8, 17)) < 0.15] = SEP
    if ragged:
        for i, length in enumerate(random.integers(1, 17, 8)):
            windows[i, length + 1 :] = FILL
    return pack(windows, SEP)


def run(e: Experiment, steps=3, devices=1, batches=None):
    """(state, losses) after a few steps over the first `devices` devices."""
    program = build(e, jax.devices()[:devices])
    state, losses = program.init(), []
    for i in range(steps):
        state, metrics = program.step(state, program.shard_batch(batches[i] if batches else batch(i)))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


@functools.cache
def plain():
    return run(experiment())


# With SGD parameters are sums of gradients; Adam and clipping would hide their scale.
SGD = OptimConfig(name="sgd", learning_rate=0.1, schedule="constant", clip_norm=None)


@functools.cache
def plain_sgd():
    return run(experiment(optim=SGD))


def close(a, b, rtol=2e-5, atol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize("accum_steps", [2, 8])
def test_accumulation_over_ragged_padding_equals_the_big_batch(accum_steps):
    state, losses = run(experiment(accum_steps=accum_steps, optim=SGD))
    wanted, wanted_losses = plain_sgd()
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-6)
    close(state.params, wanted.params)


def test_a_sharded_model_is_not_traced_outside_its_context():
    tokens = batch()["tokens"]
    program = build(experiment(sharding=ZERO3.over(fsdp=2)), jax.devices()[:2])
    params, run_model = program.init().params, jax.jit(program.apply)
    with program.context():
        wanted = run_model(params, tokens)
    with pytest.raises(UserError, match=r"outside the context of its mesh \(fsdp=2\).*with program.context\(\):"):
        run_model(params, tokens)  # also if the same function was compiled inside the context
    with pytest.raises(UserError, match="would lose its sharding"):
        jax.eval_shape(program.apply, params, tokens)
    alone = build(experiment(), jax.devices()[:1])  # one device or a bare module needs no context
    close(jax.jit(alone.apply)(jax.device_get(params), tokens), wanted, 1e-4, 1e-5)
    close(jax.jit(experiment().model.build().apply)({"params": jax.device_get(params)}, tokens), wanted, 1e-4, 1e-5)


def test_the_loss_is_a_mean_over_tokens_and_not_of_means():
    rows = batch(0)
    assert len(set(rows["weights"].sum(1))) > 3  # rows of different lengths
    _, (first, *_) = plain()
    program = build(experiment(), jax.devices()[:1])
    params = program.init().params
    logits = program.apply(params, rows["tokens"], segment_ids=rows["segment_ids"], positions=rows["positions"])
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), rows["targets"][..., None], -1)[..., 0]
    assert first == pytest.approx((nll * rows["weights"]).sum() / rows["weights"].sum(), rel=1e-5)


class Draws(CausalLM):
    """An objective whose loss is a number drawn from the key."""

    def loss(self, apply, params, batch, key):
        draw = jax.random.uniform(key)
        return draw + 0.0 * params["w"], jnp.float32(1.0), {"nll": draw, "square": draw**2}


def test_each_step_and_each_microbatch_has_a_key_of_its_own():
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_step(lambda *_: None, Draws(), optimizer, lambda step: 0.1, accum_steps=2))
    state, losses = new_state({"w": jnp.float32(0.0)}, optimizer, 0, None), []
    for _ in range(3):
        state, metrics = step(state, {"tokens": jnp.zeros((2, 4), jnp.int32)})
        losses.append(float(metrics["loss"]))
        assert float(metrics["square"]) > losses[-1] ** 2 + 1e-6  # the variance of the two microbatches' draws
    assert len(set(losses)) == 3


MESHES = {
    "data 8": Sharding(),
    "fsdp 8": Sharding(mesh=MeshConfig(data=1, fsdp=8), params=dict(FSDP)),
    "optimizer split over data": Sharding(optimizer={**FSDP, "embed": "data"}),
    "tensor 4 data 2": Sharding(mesh=MeshConfig(tensor=4), params=dict(TENSOR)),
    "2x2x2": Sharding(mesh=MeshConfig(data=2, fsdp=2, tensor=2), params={**TENSOR, "embed": "fsdp"}),
}


FAST = ("optimizer split over data", "2x2x2")  # the parity matrix, `test_meshes.py`, covers the others


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.full) for n in MESHES])
def test_eight_devices_equal_one(name):
    state, losses = run(experiment(sharding=MESHES[name]), devices=8)
    wanted, wanted_losses = plain()
    np.testing.assert_allclose(losses, wanted_losses, rtol=2e-6)
    close(state.params, wanted.params, rtol=1e-3, atol=1e-4)  # Adam divides small gradients by small numbers


def test_the_tables_decide_where_arrays_lie():
    program = build(experiment(sharding=MESHES["2x2x2"]), jax.devices())
    state = program.init()
    kernel = state.params["block_0"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec("fsdp", "tensor")
    assert kernel.addressable_shards[0].data.shape == (8, 32)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
    assert len(moments) >= 2 and all(x.sharding.spec == kernel.sharding.spec for x in moments)
    split = build(experiment(sharding=MESHES["optimizer split over data"]), jax.devices()).init()
    moments = {x.sharding.spec for x in jax.tree.leaves(split.opt_state) if x.shape == kernel.shape}
    assert jax.sharding.PartitionSpec("data") in moments
    assert split.params["block_0"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated


FAST_OPTIMIZERS = ("adamw", "adafactor", "muon")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST_OPTIMIZERS else pytest.mark.slow) for n in OPTIMIZERS]
)
def test_every_optimizer_runs_split_over_a_mesh(name):
    e = experiment(optim=OptimConfig(name=name, learning_rate=1e-2, schedule="constant"), sharding=MESHES["2x2x2"])
    state, losses = run(e, devices=8)
    wanted, wanted_losses = run(dataclasses.replace(e, sharding=Sharding()))
    np.testing.assert_allclose(losses, wanted_losses, rtol=5e-5)


def test_a_batch_that_does_not_divide_over_the_mesh_is_an_error_before_any_compile():
    e = experiment()
    e.data.batch_size = 12
    with pytest.raises(UserError, match=r"data.batch_size=12: does not divide over data\*fsdp=8 devices; use 16"):
        build(e, jax.devices())
    e.data.batch_size, e.accum_steps = 16, 4
    with pytest.raises(UserError, match=r"data.batch_size=16: .*\(over accum_steps=4: 4 rows\); use 32"):
        build(e, jax.devices())


def test_several_steps_in_one_call_equal_as_many_calls():
    # An epsilon above the rounding errors of zero gradients, such as those of key biases.
    adam = OptimConfig(learning_rate=1e-2, schedule="constant", epsilon=1e-4)
    program = build(experiment(steps_per_call=2, optim=adam), jax.devices()[:1])
    state, losses = program.init(), []
    for i in (0, 2):
        state, metrics = program.step(state, program.shard_batches([batch(i), batch(i + 1)]))
        losses += np.asarray(metrics["loss"]).tolist()
    wanted, wanted_losses = run(experiment(optim=adam), steps=4)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-6)
    close(state.params, wanted.params)
    assert int(state.step) == 4


def test_the_state_is_donated():
    program = build(experiment(), jax.devices()[:1])
    state = program.init()
    kernel = state.params["block_0"]["mlp"]["up"]["kernel"]
    program.step(state, program.shard_batch(batch()))
    assert kernel.is_deleted()


def poisoned(seed):
    rows = batch(seed)
    rows["weights"][3, 0] = np.nan
    return rows


def test_an_update_that_is_not_finite_is_left_out_and_counted():
    program = build(experiment(on_nonfinite="skip"), jax.devices()[:1])
    state, metrics = program.step(program.init(), program.shard_batch(batch(0)))
    before = jax.device_get((state.params, state.opt_state))
    state, metrics = program.step(state, program.shard_batch(poisoned(1)))
    assert (metrics["finite"], metrics["skipped"], int(state.step)) == (0, 1, 2)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get((state.params, state.opt_state)), before)
    state, metrics = program.step(state, program.shard_batch(batch(2)))
    assert (metrics["finite"], metrics["skipped"]) == (1, 1)
    # A skipped step changes nothing.
    wanted, _ = run(experiment(), steps=2, batches=[batch(0), batch(2)])
    close(jax.device_get(state.params), wanted.params)


def test_a_batch_of_padding_alone_changes_nothing_but_decay():
    rows = batch(0)
    rows["weights"][:] = 0
    program = build(experiment(optim=OptimConfig(weight_decay=0.0)), jax.devices()[:1])
    state = program.init()
    before = jax.device_get(state.params)
    state, metrics = program.step(state, program.shard_batch(rows))
    assert metrics["finite"] == 1 and metrics["loss"] == 0
    close(jax.device_get(state.params), before, atol=1e-12)


def test_float16_scales_the_loss_and_trains_as_float32_does():
    half = experiment(model={"policy": Policy(compute_dtype="float16")}, loss_scale=2.0**10, optim=SGD)
    state, losses = run(half)
    wanted, wanted_losses = plain_sgd()
    np.testing.assert_allclose(losses, wanted_losses, rtol=5e-3)
    close(state.params, wanted.params, rtol=1e-2, atol=1e-3)
    assert float(state.loss_scale["scale"]) == 2.0**10 and int(state.loss_scale["good"]) == 3


def test_float16_overflow_halves_the_scale_and_leaves_the_parameters():
    program = build(
        experiment(model={"policy": Policy(compute_dtype="float16")}, loss_scale=2.0**24), jax.devices()[:1]
    )
    state = program.init()
    before = jax.device_get(state.params)
    state, metrics = program.step(state, program.shard_batch(batch()))
    assert float(state.loss_scale["scale"]) == 2.0**23 and metrics["skipped"] == 1 and metrics["finite"] == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)
    for i in range(20):
        state, metrics = program.step(state, program.shard_batch(batch(i)))
    assert int(state.step) - int(state.skipped) > 3 and jnp.isfinite(metrics["loss"])


def test_a_saved_state_keeps_its_names_and_is_restored():
    """Checkpoints written before a field was renamed must load."""
    state = new_state({"w": jnp.ones(2)}, optax.sgd(0.1), 0, 8.0)
    trees = saved_trees(state)
    assert set(trees) == {"params", "rest"}
    assert set(trees["rest"]) == {"step", "opt_state", "key", "skipped", "scaling"}
    jax.tree.map(np.testing.assert_array_equal, from_saved_trees(trees), state)


def test_the_loss_scale_doubles_after_2000_good_steps():
    scaling = {"scale": jnp.float32(8.0), "good": jnp.int32(1999)}
    grown = next_scaling(scaling, jnp.bool_(True))
    assert (float(grown["scale"]), int(grown["good"])) == (16.0, 0)
    halved = next_scaling(scaling, jnp.bool_(False))
    assert (float(halved["scale"]), int(halved["good"])) == (4.0, 0)


def test_attention_that_cannot_run_here_is_an_error_before_any_compile():
    from jaxnlp.nn.kernels import Flash

    with pytest.raises(UserError, match=r"model.attention=Flash\(\): does not run on cpu, only on tpu"):
        build(experiment(model={"attention": Flash()}), jax.devices()[:1])
