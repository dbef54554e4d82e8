"""Shapes of schedules, the mask of weight decay, and every optimizer lowers a loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp.errors import FieldError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.optim import OPTIMIZERS, OptimConfig, decay_mask, make_optimizer, make_schedule, matrix_axes, noam_peak
from jaxnlp.sharding.functional import abstract_params
from jaxnlp.sharding.rules import path_name

AXES = {"w": {"kernel": ("embed", "mlp"), "bias": ("mlp",)}, "e": ("vocab", "embed"), "o": ("heads", "kv", "embed")}


def params():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"w": {"kernel": (8, 6), "bias": (6,)}, "e": (5, 8), "o": (2, 4, 8)}
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    return tree.unflatten([jax.random.normal(keys[0], s) for s in leaves])


@pytest.mark.parametrize(
    ("fields", "points"),
    [
        ({"schedule": "cosine", "final_fraction": 0.1}, {0: 1.0, 50: 0.55, 100: 0.1}),
        ({"schedule": "linear", "final_fraction": 0.0}, {0: 1.0, 25: 0.75, 100: 0.0}),
        ({"schedule": "wsd", "decay_fraction": 0.2, "final_fraction": 0.0}, {0: 1.0, 80: 1.0, 90: 0.5, 100: 0.0}),
        ({"schedule": "inverse_sqrt", "warmup_steps": 16}, {0: 1 / 16, 15: 1.0, 63: 0.5}),
        ({"schedule": "constant"}, {0: 1.0, 99: 1.0}),
        (
            {"schedule": "cosine", "warmup_steps": 10, "final_fraction": 0.0},
            {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 100: 0.0},
        ),
        ({"schedule": "linear", "total_steps": 200, "final_fraction": 0.0}, {100: 0.5}),
    ],
)
def test_schedules(fields, points):
    schedule = make_schedule(OptimConfig(learning_rate=1.0, **fields), 100)
    for step, value in points.items():
        assert float(schedule(step)) == pytest.approx(value, abs=1e-6), step


def test_the_2017_schedule_is_equation_3():
    schedule = make_schedule(
        OptimConfig(learning_rate=noam_peak(512, 4000), schedule="inverse_sqrt", warmup_steps=4000), 100_000
    )
    for step in (1, 17, 3999, 4000, 4001, 50_000):
        wanted = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert float(schedule(step - 1)) == pytest.approx(wanted, abs=1e-6 * noam_peak(512, 4000))


def test_a_warmup_longer_than_the_run_is_an_error():
    with pytest.raises(FieldError, match="warmup_steps=100: expected fewer than the schedule's 100"):
        make_schedule(OptimConfig(warmup_steps=100), 100)


def test_decay_leaves_out_what_the_patterns_name():
    mask = decay_mask(params(), ("bias$", "^e$"))
    assert mask == {"w": {"kernel": True, "bias": False}, "e": False, "o": True}


def test_by_default_the_matrices_and_tables_of_a_model_are_decayed_and_nothing_else():
    module = GPTConfig(vocab_size=8, num_layers=1, num_heads=2, embed_dim=8).build()
    shapes, _ = abstract_params(module, jax.ShapeDtypeStruct((1, 4), jnp.int32))
    for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(shapes, OptimConfig().no_decay)):
        name = path_name(path)
        assert decays == name.endswith(("kernel", "embedding")), name


@pytest.mark.parametrize(("name", "b2"), [("adamw", 0.95), ("lion", 0.99)])
def test_the_default_second_decay_rate_is_the_one_documented(name, b2):
    def moved(config):
        optimizer, _ = make_optimizer(config, 10, AXES)
        p = params()
        state = optimizer.init(p)
        for scale in (1.0, -0.3):
            updates, state = optimizer.update(jax.tree.map(lambda x, scale=scale: scale * x, params()), state, p)
            p = optax.apply_updates(p, updates)
        return jax.tree.leaves(state)

    config = OptimConfig(name=name, schedule="constant")
    default, same, other = (moved(dataclasses.replace(config, b2=value)) for value in (None, b2, 0.9))
    assert all((a == b).all() for a, b in zip(default, same, strict=True))
    assert not all((a == b).all() for a, b in zip(default, other, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss_and_decays_only_what_it_should(name):
    config = OptimConfig(name=name, learning_rate=0.05, weight_decay=0.0, schedule="constant", no_decay=("bias$",))
    x = jax.random.normal(jax.random.key(1), (32, 8))

    def loss(p):
        h = x @ p["w"]["kernel"] + p["w"]["bias"] - 1.0
        return (h**2).mean() + (p["e"] ** 2).mean() + (p["o"] ** 2).mean()

    def train(config, steps, value_and_grad):
        optimizer, _ = make_optimizer(config, steps, AXES)
        p = params()
        state = optimizer.init(p)

        @jax.jit
        def step(p, state):
            updates, state = optimizer.update(value_and_grad(p)[1], state, p)
            return jax.tree.map(jnp.add, p, updates), state

        for _ in range(steps):
            p, state = step(p, state)
        return p

    trained = train(config, 60, jax.value_and_grad(loss))
    assert loss(trained) < 0.6 * loss(params())
    # With zero gradients, decay shrinks the parameters in its mask and leaves the bias.
    config.weight_decay = 0.5
    zero = lambda p: (0.0, jax.tree.map(jnp.zeros_like, p))
    shrunk = train(config, 3, zero)
    np.testing.assert_array_equal(shrunk["w"]["bias"], params()["w"]["bias"])
    factor = np.asarray(shrunk["w"]["kernel"] / params()["w"]["kernel"])
    np.testing.assert_allclose(factor, (1 - 0.05 * 0.5) ** 3, rtol=1e-5)


def test_clipping_bounds_the_global_norm():
    config = OptimConfig(name="sgd", learning_rate=1.0, schedule="constant", b1=0.0, weight_decay=0.0, clip_norm=0.5)
    optimizer, _ = make_optimizer(config, 1, AXES)
    grads = jax.tree.map(lambda x: 10 * x, params())
    updates, _ = optimizer.update(grads, optimizer.init(params()), params())
    norm = np.sqrt(sum(float((u**2).sum()) for u in jax.tree.leaves(updates)))
    assert norm == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_reaches_every_kind_of_parameter_but_those_named(name):
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.5, schedule="constant", no_decay=("bias$",))
    optimizer, _ = make_optimizer(config, 10, AXES)
    p = params()
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, p), optimizer.init(p), p)
    for x, update in ((p["w"]["kernel"], updates["w"]["kernel"]), (p["e"], updates["e"]), (p["o"], updates["o"])):
        np.testing.assert_allclose(update, -0.05 * x, rtol=1e-5)
    np.testing.assert_allclose(updates["w"]["bias"], 0.0, atol=1e-7)


def test_muon_reads_matrices_off_their_axes():
    axes = {
        **AXES,
        "stacked": ("layers", "embed", "heads", "kv"),
        "bias": ("heads", "kv"),
        "norm": ("norm",),
        "p": ("length", "embed"),
    }
    matrices = matrix_axes(axes)
    assert (
        matrices["w"]["kernel"] == ((0,), (1,))
        and matrices["o"] == ((0, 1), (2,))
        and matrices["stacked"] == ((1,), (2, 3))
    )
    assert all(matrices[name] is None for name in ("e", "bias", "norm", "p")) and matrices["w"]["bias"] is None


def narrow(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def trained(master_dtype, start, steps=30, **fields):
    """Parameters and state after steps on a quadratic loss, also in float32 with parameters rounded at use."""
    config = OptimConfig(learning_rate=1e-4, schedule="constant", clip_norm=0.5, master_dtype=master_dtype, **fields)
    optimizer, _ = make_optimizer(config, steps, AXES)
    plain, _ = make_optimizer(dataclasses.replace(config, master_dtype=None), steps, AXES)
    gradient = jax.grad(lambda p: sum(jnp.square(x.astype(jnp.float32) - 0.5).sum() for x in jax.tree.leaves(p)))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), start)

    @jax.jit
    def step(params, state, wide, wide_state):
        updates, state = optimizer.update(gradient(params), state, params)
        grads = jax.tree.map(lambda x: x.astype(jnp.float32), gradient(narrow(wide)))
        wide_updates, wide_state = plain.update(grads, wide_state, wide)
        return optax.apply_updates(params, updates), state, optax.apply_updates(wide, wide_updates), wide_state

    carry = (start, optimizer.init(start), wide, plain.init(wide))
    for _ in range(steps):
        carry = step(*carry)
    return carry


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_master_copy_is_float32_training_with_parameters_rounded_where_used(name):
    actual, state, wanted, _ = trained("float32", narrow(params()), name=name)
    assert {x.dtype for x in jax.tree.leaves(actual)} == {jnp.dtype("bfloat16")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), state["master"], wanted)
    jax.tree.map(np.testing.assert_array_equal, actual, narrow(state["master"]))


def test_without_a_master_copy_small_updates_are_lost():
    start = narrow(params())

    def still(dtype):
        pairs = zip(jax.tree.leaves(trained(dtype, start)[0]), jax.tree.leaves(start), strict=True)
        return np.mean([np.mean(a == b) for a, b in pairs])

    assert still(None) > still("float32") + 0.3


def test_mixed_precision_adam_has_12_bytes_a_parameter():
    optimizer, _ = make_optimizer(OptimConfig(master_dtype="float32"), 10, AXES)
    count = sum(x.size for x in jax.tree.leaves(params()))
    state = jax.eval_shape(optimizer.init, narrow(params()))
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim) == 12 * count


def test_another_master_dtype_is_told():
    with pytest.raises(FieldError, match="master_dtype='float64': expected 'float32', or None"):
        OptimConfig(master_dtype="float64").check()
