"""Optimizer state in host memory: training is the same, and a device has the state of one layer at most."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.errors import FieldError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.policy import Policy
from jaxnlp.optim import LAYERWISE, OPTIMIZERS, OptimConfig, make_optimizer
from jaxnlp.planning import dry_run
from jaxnlp.planning.planner import estimate_step
from jaxnlp.planning.report import format_plan as plan_report
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.presets import PP, TP, ZERO1, ZERO2
from jaxnlp.sharding.rules import REPLICATED, TENSOR, Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.run_folder.checkpoint import Reader, Writer
from jaxnlp.training.step.offload import Offload
from jaxnlp.training.step.program import build
from jaxnlp.training.step.state import check_memory, new_state, saved_trees, state_shardings
from tests import tpu

V, B, T, LAYERS = 32, 16, 16, 3
BF16 = Policy(param_dtype="bfloat16")
MASTER = OptimConfig(learning_rate=0.01, clip_norm=0.1, epsilon=1e-4, master_dtype="float32")


def host(sharding: Sharding) -> Sharding:
    return dataclasses.replace(sharding, optimizer_memory="host")


def experiment(sharding: Sharding, optim: OptimConfig | None = None, policy: Policy | None = None, **fields):
    model = GPTConfig(
        vocab_size=V,
        max_length=T,
        num_layers=LAYERS,
        num_heads=4,
        embed_dim=16,
        scan_layers=True,
        policy=policy or BF16,
    )
    return Experiment(
        model=model, data=DataConfig(seq_len=T, batch_size=B), optim=optim or MASTER, sharding=sharding, **fields
    )


def trained(program, state, steps=3):
    """The state after further steps."""
    for i in range(int(state.step), int(state.step) + steps):
        tokens, targets = np.random.default_rng(i).integers(0, V, (2, B, T)).astype(np.int32)
        batch = {"tokens": tokens, "targets": targets, "weights": np.ones((B, T), np.float32)}
        batch |= {"segment_ids": np.ones((B, T), np.int32), "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1))}
        if (count := program.experiment.steps_per_call) > 1:
            batch = {name: np.stack([x] * count) for name, x in batch.items()}
        state, _ = program.step(state, batch)
    return state


def close(actual, wanted, rtol=1e-5, atol=2e-6):
    def close_leaf(a, b):
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)

    jax.tree.map(close_leaf, actual, wanted)


def kinds(opt_state):
    """Memory kinds of the leaves shaped like parameters, and of the others."""
    leaves = jax.tree.leaves(opt_state)
    return [{x.sharding.memory_kind for x in leaves if (x.ndim > 0) == large} for large in (True, False)]


# The update

AXES = {"blocks": {"up": ("layers", "embed", "mlp"), "bias": ("layers", "mlp")}, "other": ("embed", "mlp")}
AXES["first"] = ("vocab", "embed")


def some(seed, dtype):
    shapes = {"blocks": {"up": (LAYERS, 8, 6), "bias": (LAYERS, 6)}, "other": (8, 6), "first": (5, 8)}
    random = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(random.normal(size=shape), dtype)
    return jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize("master", [None, "float32"])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("adamw", "adafactor") else pytest.mark.slow) for n in OPTIMIZERS]
)
def test_an_update_by_parts_is_the_update(name, master):
    config = OptimConfig(name=name, learning_rate=0.1, warmup_steps=2, clip_norm=0.5, master_dtype=master)
    optimizer, _ = make_optimizer(config, 10, AXES)
    params = some(0, "bfloat16" if master else "float32")
    state, sharding = new_state(params, optimizer, 0, None), host(Sharding(params=REPLICATED))
    layout = state_shardings(state, AXES, sharding, make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)
    parts = Offload(optimizer, abstract, AXES, layerwise=name in LAYERWISE)

    @jax.jit
    def whole(grads, state):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    by_parts = jax.jit(parts, out_shardings=(layout.params, layout.opt_state))
    actual, wanted = jax.device_put(state, layout), state
    for i in range(3):
        grads = jax.tree.map(lambda g: 3 * g, some(i + 1, params["other"].dtype))
        actual, wanted = (
            dataclasses.replace(s, params=p, opt_state=o)
            for s, (p, o) in ((actual, by_parts(grads, actual, None)), (wanted, whole(grads, wanted)))
        )
    close((actual.params, actual.opt_state), (wanted.params, wanted.opt_state))
    # A skipped update changes nothing, counters included.
    same = by_parts(grads, actual, jnp.array(False))
    jax.tree.map(np.testing.assert_array_equal, same, (actual.params, actual.opt_state))


# Full steps on eight devices

SPLIT = {**TENSOR, "embed": "fsdp"}
CASES = {
    "ZERO1": (ZERO1.over(fsdp=8), {}),
    "ZERO2": (ZERO2.over(data=2, fsdp=4), {"steps_per_call": 2, "on_nonfinite": "skip"}),
    "ZERO3 and TP": (Sharding(params=SPLIT).over(fsdp=4, tensor=2), {"accum_steps": 2}),
    "TP": (TP.over(data=2, tensor=4), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_training_is_the_same(name):
    sharding, fields = CASES[name]
    offloaded, wanted = (
        build(experiment(s, num_steps=20, **fields), jax.devices()) for s in (host(sharding), sharding)
    )
    state = trained(offloaded, offloaded.init())
    assert kinds(state.opt_state) == [{"pinned_host"}, {"device"}]
    assert kinds(state.params)[0] == {"device"}
    other = trained(wanted, wanted.init())
    close((state.params, state.opt_state["master"]), (other.params, other.opt_state["master"]))
    assert int(state.step) == int(other.step)


BOTH = {"host": host(ZERO2.over(fsdp=2)), "device": ZERO2.over(fsdp=2)}


@pytest.mark.slow
def test_a_checkpoint_goes_on_in_either_memory(tmp_path):
    programs = {memory: build(experiment(s, num_steps=20), jax.devices()[:2]) for memory, s in BOTH.items()}
    writer = Writer(tmp_path, keep_last=9, keep_best=0)
    state = programs["host"].init()
    records = {"data": {"position": 0}, "config": configs.to_dict(programs["host"].experiment)}
    records["tokenizer"] = ByteTokenizer().to_json()
    save = lambda state: writer.save(int(state.step), saved_trees(state), records)
    save(state)
    writer.wait()
    restore = lambda step, memory: Reader(tmp_path).restore(step, programs[memory].abstract)
    back = restore(0, "host")
    assert kinds(back.opt_state) == kinds(state.opt_state)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    moved = restore(0, "device")
    assert kinds(moved.opt_state) == [{"device"}, {"device"}]
    moved = trained(programs["device"], moved, 1)
    save(moved)
    writer.wait()
    writer.close()
    again = trained(programs["host"], restore(1, "host"), 1)
    straight = trained(programs["host"], state, 2)
    close(again.params, straight.params)


# Reports


def test_the_account_tells_the_hosts_bytes_from_the_devices():
    offloaded, beside = (
        build(experiment(BOTH[memory], num_steps=20), jax.devices()[:2]) for memory in ("host", "device")
    )
    mine, other = dry_run.estimate_memory(offloaded), dry_run.estimate_memory(beside)
    # Counters and unsplit arrays are the only difference from 12 bytes per parameter.
    assert mine["optimizer state in host memory"] + mine["optimizer state"] == other["optimizer state"]
    assert mine["optimizer state"] < 100 and mine["total"] == other["total"] - mine["optimizer state in host memory"]
    assert "optimizer state in host memory" not in other
    plan = estimate_step(offloaded)
    assert plan.host_memory == {"optimizer state": mine["optimizer state in host memory"]}
    assert plan.memory["optimizer state"] == mine["optimizer state"] and not estimate_step(beside).host_memory
    assert plan.zero_formula["optimizer bytes"] == 0 and plan.zero_formula["bytes"] == pytest.approx(
        state_bytes(plan), rel=0.05
    )
    assert "  host memory: optimizer state" in plan_report(plan)


def state_bytes(plan):
    return sum(size for part, size in plan.memory.items() if part != "activations")


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        (dataclasses.replace(ZERO2, optimizer_memory="disk"), r"optimizer_memory='disk': expected one of device, host"),
        (
            host(PP.over(stage=2, data=4)),
            r"sharding.optimizer_memory='host': the layers are split over 'stage', .*'device'",
        ),
    ],
)
def test_what_cannot_be_is_one_line(sharding, message):
    e = experiment(sharding, num_steps=20)
    e = dataclasses.replace(e, model=dataclasses.replace(e.model, num_layers=4))
    with pytest.raises(FieldError, match=message):
        configs.check(e)
        build(e, jax.devices())


def test_devices_without_the_hosts_memory_are_told():
    memory = type("Memory", (), {"kind": "HBM"})()
    device = type("Device", (), {"platform": "abacus", "addressable_memories": lambda self: [memory]})()
    mesh = type("Mesh", (), {"devices": np.array([device], object)})()
    with pytest.raises(FieldError, match="host': abacus devices have no memory 'pinned_host' .only HBM.; use 'dev"):
        check_memory(mesh)


# Compiled for TPUs, on any machine.


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["stacked", "unrolled"])
def test_a_tpu_holds_no_more_of_the_state_than_a_layers(layers):
    """12 bytes per parameter, split over four chips, are in host memory; the chips need nearly as much less."""
    memory = tpu.compiled("tests.training.compile_offload", "ZERO3", layers)
    print(memory)
    assert memory["host"]["host arguments"] == pytest.approx(12 * memory["parameters"] / 4, rel=0.02)
    assert memory["device"]["host"] == 0
    assert memory["host"]["peak"] < 0.6 * memory["device"]["peak"]
