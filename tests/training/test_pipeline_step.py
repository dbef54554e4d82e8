"""A step over pipeline stages has the sums and gradients of one device, with dropout and padding; its costs."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.nn.policy import Policy
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.objectives.masked_lm import MaskedLM
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.optim import OptimConfig
from jaxnlp.planning.hlo import collectives
from jaxnlp.sharding.functional import abstract_params, init_params, make_apply
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.pipeline import Circular, GPipe, Naive, OneFOneB, one_f_one_b, through_stages, ticks
from jaxnlp.sharding.presets import DP_PP_TP, PP
from jaxnlp.sharding.rules import ACTIVATIONS, TENSOR, Sharding, shardings
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step import pipeline_step, step
from jaxnlp.training.step.program import build
from tests.tpu import compiled

from .test_meshes import MODELS, B, T, batch

L, M = 4, 4
STAGED = {**TENSOR, "layers": "stage", "vocab": ("stage", "tensor")}
ACTIVE = {**ACTIVATIONS, "vocab": ("stage", "tensor")}
AXES = ("data", "fsdp")
SCHEDULES = {"naive": Naive(), "gpipe": GPipe(), "1f1b": OneFOneB(), "circular": Circular(virtual_stages=2)}
MESHES = {"stage 4": {"stage": 4}, "2 2 2": {"data": 2, "stage": 2, "tensor": 2}}
OBJECTIVES = {"gpt": CausalLM(z_loss=1e-3), "bert": MaskedLM(), "t5": Seq2Seq(label_smoothing=0.1)}


@functools.cache
def parts(name: str, num_layers: int):
    """(objective, apply, params, logical axes, batch)."""
    both = {"num_decoder_layers": num_layers} if name == "t5" else {}
    model = dataclasses.replace(MODELS[name], num_layers=num_layers, scan_layers=True, **both)
    module, inputs = model.build(), model.example_inputs(B // M, T)
    params = init_params(module, jax.random.key(0), *(np.zeros(x.shape, x.dtype) for x in inputs))
    _, axes = abstract_params(module, *inputs)
    return OBJECTIVES[name], make_apply(module), params, axes, OBJECTIVES[name].prepare(batch(name.split()[0], 0))


@functools.cache
def plain(name: str, num_layers: int, scale=None):
    objective, apply, params, _, rows = parts(name, num_layers)
    gradient = lambda params, rows: step.sum_gradients(apply, objective, params, rows, jax.random.key(7), M, scale)
    return jax.device_get(jax.jit(gradient)(params, rows))


def staged(
    name: str, schedule, sizes: dict[str, int], num_layers: int, scale=None, table=None, active=None, at_rest=None
):
    """(the mesh's context, a jitted function of params and batch, params, batch).

    table, active: rules of parameters and activations. at_rest: rules of gradients; parameters are gathered at use.
    """
    table, active = table or STAGED, active or ACTIVE
    tables = (
        (active,) if at_rest is None else (active, Sharding(params=table, activations=active).compute_rules, at_rest)
    )
    objective, apply, params, axes, rows = parts(name, num_layers)
    mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}), jax.devices()[: math.prod(sizes.values())])
    layout = shardings(params, axes, table, mesh)
    gradients = shardings(params, axes, at_rest or table, mesh)

    def gradient(params, rows):
        with axis_rules(*tables):
            return pipeline_step.sum_gradients(
                apply,
                objective,
                params,
                rows,
                jax.random.key(7),
                M,
                scale,
                gradients,
                schedule=schedule,
                batch_axes=AXES,
            )

    fn = jax.jit(gradient, in_shardings=(layout, NamedSharding(mesh, PartitionSpec(AXES))))
    return jax.set_mesh(mesh), fn, params, rows


def close(actual, wanted):
    def close_leaf(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-2))

    jax.tree.map(close_leaf, actual, wanted)


FAST = {("gpt", "1f1b", "2 2 2")}  # GPipe and the circular schedule are in `test_meshes.py`
OTHERS = {("bert", "1f1b", "stage 4"), ("bert", "1f1b", "2 2 2")}
COVERING = {("gpt", "naive", "stage 4"), ("gpt", "gpipe", "2 2 2"), ("gpt", "1f1b", "stage 4")}
COVERING |= {("gpt", "circular", "stage 4"), ("bert", "1f1b", "2 2 2")}


def marks(*case: str):
    return () if case in FAST else pytest.mark.slow if case in COVERING else pytest.mark.full


CASES = [
    pytest.param(name, s, mesh, marks=marks(name, s, mesh))
    for name in OBJECTIVES
    for s in SCHEDULES
    for mesh in MESHES
    if name == "gpt" or (name, s, mesh) in OTHERS
]


@pytest.mark.parametrize(("name", "schedule", "mesh"), CASES)
def test_a_pipelined_step_equals_one_without(name, schedule, mesh):
    virtual_stages = SCHEDULES[schedule].virtual_stages
    num_layers = L * virtual_stages if mesh == "stage 4" else L
    context, fn, params, rows = staged(name, SCHEDULES[schedule], MESHES[mesh], num_layers)
    with context:
        sums, grads = jax.device_get(fn(params, rows))
    wanted_sums, wanted_grads = plain(name, num_layers)
    close(sums, wanted_sums)
    close(grads, wanted_grads)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads.get("blocks", {})))


ZERO = {**STAGED, "embed": "fsdp"}
TABLES = {
    "sequence parallel": ({"data": 2, "stage": 2, "tensor": 2}, STAGED, {**ACTIVE, "residual": "tensor"}, None),
    "context": ({"data": 2, "stage": 2, "sequence": 2}, STAGED, ACTIVE, None),
    "zero 2": ({"data": 2, "stage": 2, "fsdp": 2}, STAGED, ACTIVE, ZERO),
    "zero 3": ({"stage": 2, "fsdp": 2, "tensor": 2}, ZERO, ACTIVE, ZERO),
}

TABLES_OF = {"sequence parallel": "gpipe", "context": "circular", "zero 2": "gpipe", "zero 3": "circular"}
# GPipe and the circular schedule share code; `test_meshes.py` runs GPipe with the other tables.
COVERED_ELSEWHERE = {("circular", "context"), ("gpipe", "zero 2"), ("circular", "zero 3")}


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        pytest.param(s, name, marks=pytest.mark.full if (s, name) in COVERED_ELSEWHERE else pytest.mark.slow)
        for name, also in TABLES_OF.items()
        for s in ("1f1b", also)
    ],
)
def test_stages_go_with_every_other_axis(schedule, name):
    sizes, table, active, at_rest = TABLES[name]
    context, fn, params, rows = staged(
        "gpt", SCHEDULES[schedule], sizes, L, table=table, active=active, at_rest=at_rest
    )
    with context:
        sums, grads = jax.device_get(fn(params, rows))
    wanted_sums, wanted_grads = plain("gpt", L)
    close(sums, wanted_sums)
    close(grads, wanted_grads)


@pytest.mark.parametrize("schedule", [pytest.param("gpipe", marks=pytest.mark.slow), "1f1b"])
def test_the_loss_scale_multiplies_gradients_and_not_sums(schedule):
    context, fn, params, rows = staged("gpt", SCHEDULES[schedule], {"stage": 2}, L, scale=8.0)
    with context:
        sums, grads = jax.device_get(fn(params, rows))
    wanted_sums, wanted_grads = plain("gpt", L)
    close(sums, wanted_sums)
    close(grads, jax.tree.map(lambda g: 8.0 * g, wanted_grads))


@pytest.mark.parametrize(
    ("dtype", "schedule"),
    [
        pytest.param("bfloat16", "1f1b", marks=pytest.mark.slow),
        pytest.param("float16", "gpipe", marks=pytest.mark.slow),
        pytest.param("bfloat16", "gpipe", marks=pytest.mark.full),
        pytest.param("float16", "1f1b", marks=pytest.mark.full),
    ],
)
def test_in_half_precision_gradients_are_near_those_without(monkeypatch, dtype, schedule):
    policy = Policy(param_dtype="bfloat16" if dtype == "bfloat16" else "float32", compute_dtype=dtype)
    monkeypatch.setitem(MODELS, f"gpt {dtype}", dataclasses.replace(MODELS["gpt"], policy=policy))
    monkeypatch.setitem(OBJECTIVES, f"gpt {dtype}", OBJECTIVES["gpt"])
    context, fn, params, rows = staged(f"gpt {dtype}", SCHEDULES[schedule], {"data": 2, "stage": 2}, L)
    with context:
        sums, grads = jax.device_get(fn(params, rows))
    wanted_sums, wanted_grads = plain(f"gpt {dtype}", L)
    error = 0.03 if dtype == "bfloat16" else 0.005
    np.testing.assert_allclose(sums[0], wanted_sums[0], rtol=error)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=error * max(np.abs(b).max(), 1e-2))


def experiment(name: str, sharding: Sharding) -> Experiment:
    return Experiment(
        model=dataclasses.replace(MODELS[name], num_layers=L),
        objective=OBJECTIVES[name],
        data=DataConfig(seq_len=T, batch_size=B),
        optim=OptimConfig(name="sgd", learning_rate=0.1, schedule="constant", weight_decay=0.0),
        sharding=sharding,
        accum_steps=M,
        num_steps=10,
    )


def test_an_evaluation_over_stages_is_that_of_one_device():
    """Evaluation needs no schedule: all stages run all layers, gathering each layer's parameters."""
    results = []
    for sharding, devices in ((DP_PP_TP.over(data=2, stage=2, tensor=2), 8), (Sharding(), 1)):
        program = build(experiment("gpt", sharding), jax.devices()[:devices])
        results.append(jax.device_get(program.eval_step(program.init().params, batch("gpt", 3))))
    close(*results)


def test_stages_without_a_schedule_or_layers_that_do_not_divide_are_told():
    with pytest.raises(FieldError, match=r"pipeline=None: mesh.stage=2 needs a schedule, as 'gpipe' or '1f1b'"):
        dataclasses.replace(PP.over(stage=2), pipeline=None).check()
    with pytest.raises(
        FieldError, match=r"params\['layers'\]=None: mesh.stage=2 splits the stacked layers; map them to"
    ):
        dataclasses.replace(PP.over(stage=2), params=dict(TENSOR)).check()
    with pytest.raises(
        FieldError, match="pipeline='1f2b': expected one of naive, gpipe, 1f1b, circular, or a schedule"
    ):
        dataclasses.replace(PP, pipeline="1f2b").check()
    with pytest.raises(FieldError, match="model.num_layers=4: does not divide over mesh.stage=8 stages; use 8"):
        build(experiment("gpt", PP.over(stage=8)), jax.devices())
    deep = experiment("t5", PP.over(stage=2))
    deep.model = dataclasses.replace(deep.model, scan_layers=True, num_decoder_layers=3)
    with pytest.raises(FieldError, match="model.num_decoder_layers=3: does not divide over mesh.stage=2 stages; use 4"):
        build(deep, jax.devices()[:2])
    deep.sharding.pipeline = "1f1b"
    with pytest.raises(
        FieldError, match="sharding.pipeline='1f1b': supports one layer stack, and an encoder-decoder has two"
    ):
        build(deep, jax.devices()[:2])
    unrolled = experiment("gpt", PP.over(stage=2))
    unrolled.model.scan_layers = False
    with pytest.raises(FieldError, match="model.scan_layers=False: mesh.stage=2 splits stacked layers; set it to True"):
        build(unrolled, jax.devices()[:2])


def executed(jaxpr, primitive: str) -> int:
    """The number of executions of a primitive, counted in each iteration of a loop."""
    count = 0
    for eqn in jaxpr.eqns:
        count += eqn.primitive.name == primitive
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            count += times * executed(inner, primitive) if hasattr(inner, "eqns") else 0
    return count


@pytest.mark.parametrize("schedule", [GPipe(), Circular(virtual_stages=2)], ids=str)
def test_a_stage_keeps_its_weights_once_and_not_once_a_tick(schedule):
    """Each tick slices the weights of its lap, which must not become residuals of the tick."""
    sizes = []
    for m in (4, 32):
        weights, x = jax.ShapeDtypeStruct((4, 256, 256), jnp.float32), jax.ShapeDtypeStruct((m, 1, 256), jnp.float32)
        with jax.set_mesh(make_mesh(MeshConfig(data=1, stage=2), jax.devices()[:2])):
            gradient = jax.jit(functools.partial(toy, schedule, jnp.zeros((m, 2), jnp.uint32)))
            sizes.append(gradient.lower(weights, x).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] - sizes[0] < 2 * 256 * 256 * 4, sizes  # the weights of one stage


@pytest.mark.parametrize("schedule", [GPipe(), Circular(virtual_stages=2), OneFOneB()], ids=str)
def test_gradients_of_bfloat16_weights_are_summed_in_float32(schedule):
    """Each layer adds its weight, so that a microbatch's gradient is its rows; in bfloat16 256 + 1 is 256."""
    m, w = 320, jnp.zeros((4, 1), jnp.bfloat16)
    add = lambda w, x, shared, keys: jax.lax.scan(lambda x, w: (x + w, None), x, w)[0]
    with jax.set_mesh(make_mesh(MeshConfig(data=2, stage=2), jax.devices()[:4])):
        keys = jnp.zeros((m, 2), jnp.uint32)
        gradient = jax.jit(functools.partial(toy, schedule, keys, run=add, batch=("data",)))
        result = gradient(w, jnp.zeros((m, 2, 1), jnp.bfloat16))
    grads = result[1] if isinstance(schedule, OneFOneB) else result
    np.testing.assert_array_equal(np.asarray(grads, np.float32), 2 * m)


WEIGHTS = jax.ShapeDtypeStruct((16, 4, 4), jnp.float32)


def layers(w, x, shared, keys):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def toy(schedule, keys, w, x, run=layers, batch=()):
    """Gradients of layers x -> tanh(x w), for counting ticks."""
    if isinstance(schedule, OneFOneB):
        first = lambda params, inputs: (inputs[0], [], None)
        last = lambda params, inputs, y: (y.sum(), y.sum())
        return one_f_one_b(first, run, last, w, {}, (x, keys), batch)
    return jax.grad(lambda w: through_stages(schedule, run, w, x, [], [], None, batch).sum())(w)


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "circular"])
def test_executed_ticks_are_the_formula(name, stages):
    schedule = SCHEDULES[name]
    mesh = make_mesh(MeshConfig(data=1, stage=stages), jax.devices()[:stages])
    # The circular schedule needs multiples of its stages.
    odd = () if schedule.virtual_stages > 1 else (stages + 1, 5 * stages - 1)
    for m in (stages, 2 * stages, 3 * stages, 4 * stages, 8 * stages, *odd):
        x = jax.ShapeDtypeStruct((m, 2, 4), jnp.float32)
        with jax.set_mesh(mesh):
            jaxpr = jax.make_jaxpr(functools.partial(toy, schedule, jnp.zeros((m, 2), jnp.uint32)))(WEIGHTS, x).jaxpr
        assert executed(jaxpr, "ppermute") == 2 * ticks(schedule, stages, m)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", pytest.param("circular", marks=pytest.mark.slow)])
def test_gradients_are_reduced_over_data_once_a_step_and_not_once_a_tick(schedule):
    context, fn, params, rows = staged("gpt", SCHEDULES[schedule], {"data": 2, "stage": 2}, L)
    with context:
        traffic = collectives(fn.lower(params, rows).compile().as_text())
    sizes = {"data": 2, "stage": 2}
    ring = [c for c in traffic if c.kind == "collective-permute" and c.count > 1]
    assert sum(c.count for c in ring) == 2 * ticks(SCHEDULES[schedule], 2, M)
    over_data = [c for c in traffic if c.kind == "all-reduce" and "data" in c.axes(sizes)]
    assert all(c.count == 1 for c in over_data), over_data
    stage_bytes = sum(x.nbytes for x in jax.tree.leaves(params["blocks"])) / 2  # per stage
    assert sum(c.bytes for c in over_data) >= stage_bytes
    # The count includes loops.
    assert any(c.count > 1 for c in traffic if c.kind != "collective-permute") == (schedule != "1f1b")


def temporaries(schedule, m: int, num_layers: int = L) -> int:
    """Bytes of a compiled step's temporaries per device, with microbatches of constant size."""
    model = GPTConfig(vocab_size=64, max_length=64, num_layers=num_layers, num_heads=2, embed_dim=64, scan_layers=True)
    module, objective, rows = model.build(), CausalLM(), 2 * m
    shapes, axes = abstract_params(module, *model.example_inputs(2, 64))
    mesh = make_mesh(MeshConfig(data=1, stage=4), jax.devices()[:4])
    layout = shardings(shapes, axes, STAGED, mesh)
    ints = jax.ShapeDtypeStruct((rows, 64), jnp.int32)
    data = {"tokens": ints, "targets": ints, "weights": jax.ShapeDtypeStruct((rows, 64), jnp.float32)}

    def gradient(params, rows):
        with axis_rules(ACTIVE):
            return pipeline_step.sum_gradients(
                make_apply(module),
                objective,
                params,
                rows,
                jax.random.key(0),
                m,
                None,
                layout,
                schedule=schedule,
                batch_axes=AXES,
            )

    with jax.set_mesh(mesh):
        compiled = jax.jit(gradient, in_shardings=(layout, None)).lower(shapes, data).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_1f1b_does_not_grow_with_the_microbatches_and_gpipes_does():
    few, many = temporaries(OneFOneB(), 4), temporaries(OneFOneB(), 32)
    assert many <= 1.25 * few, (few, many)
    few, many = temporaries(GPipe(), 4), temporaries(GPipe(), 32)
    assert many > 3 * few, (few, many)


@pytest.mark.slow
def test_what_circular_keeps_grows_as_gpipes_and_not_with_the_square():
    sizes = {s: [temporaries(SCHEDULES[s], m, 8) for m in (8, 16, 32)] for s in ("circular", "gpipe")}
    circular, gpipe = ([b - a for a, b in itertools.pairwise(row)] for row in sizes.values())
    assert circular[1] <= 2.1 * circular[0]  # twice the additional microbatches
    assert circular[1] <= 1.25 * gpipe[1]


def test_what_cannot_be_pipelined_is_one_clear_line():
    def fails(error, match, name="gpt", schedule="gpipe", sizes=None, num_layers=L):
        context, fn, params, rows = staged(name, SCHEDULES[schedule], sizes or {"stage": 4}, num_layers)
        with context, pytest.raises(error, match=match):
            fn.lower(params, rows)

    fails(
        FieldError,
        "model.num_layers=4: does not divide over mesh.stage=4 x virtual_stages=2 stages",
        schedule="circular",
    )
    fails(UserError, "OneFOneB.*: supports one layer stack, and an encoder-decoder has two", name="t5", schedule="1f1b")
    model = dataclasses.replace(MODELS["gpt"], scan_layers=False)
    module = model.build()
    params = init_params(module, jax.random.key(0), np.zeros((2, T), np.int32))
    with (
        jax.set_mesh(make_mesh(MeshConfig(data=1, stage=2), jax.devices()[:2])),
        pytest.raises(FieldError, match="model.scan_layers=False: mesh.stage splits stacked layers; set it to True"),
    ):
        objective, rows = OBJECTIVES["gpt"], batch("gpt", 0)
        pipeline_step.sum_gradients(
            make_apply(module),
            objective,
            params,
            rows,
            jax.random.key(0),
            M,
            schedule=GPipe(),
            batch_axes=AXES,
        )


@pytest.mark.slow
def test_on_a_tpu_memory_and_reductions_are_as_on_virtual_devices():
    few, many = compiled("tests.training.compile_pipeline_tpu", "1f1b", "4", "32")
    for m, measured in ((4, few), (32, many)):
        assert measured["ticks"] == 2 * ticks(SCHEDULES["1f1b"], 4, m)
        assert all(count == 1 for _, _, count in measured["reduced over data"]), measured
        assert sum(size for _, size, _ in measured["reduced over data"]) >= measured["a stage's gradients"]
    growth = many["temporaries"] / few["temporaries"]
    print(f"{few['temporaries'] / 1e6:.1f} MB of temporaries, at eight times the microbatches {growth:.2f} times")
    assert growth <= 1.25
