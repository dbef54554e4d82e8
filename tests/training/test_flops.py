"""FLOPs counted in traces equal the models' figures and the formulas of pipeline schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxnlp import cli
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.jaxpr_flops import jaxpr_flops
from jaxnlp.peft.lora import LoRA
from jaxnlp.planning.planner import step_batch
from jaxnlp.sharding.presets import DDP, PP, TP
from jaxnlp.training.experiment import Experiment, flops_per_token
from jaxnlp.training.step.flops import step_flops
from jaxnlp.training.step.program import build

V, D, LAYERS, B, T = 256, 64, 4, 16, 32
SHARE = 12 * D**2 * LAYERS + 2 * D * T * LAYERS  # FLOPs per token of the layers, over six, and of attention
SHARE /= SHARE + D * V


def program(sharding=DDP.over(data=8), remat="none", layers=LAYERS, **fields):
    model = GPTConfig(
        vocab_size=V, max_length=T, num_layers=layers, num_heads=8, embed_dim=D, scan_layers=True, remat=remat
    )
    data = DataConfig(seq_len=T, batch_size=B)
    return build(Experiment(model=model, data=data, sharding=sharding, num_steps=10, **fields), jax.devices()[:8])


def ratio(*args, **fields) -> float:
    """FLOPs executed in a step over the model's FLOPs."""
    built = program(*args, **fields)
    return jaxpr_flops(built.step.trace(built.abstract, step_batch(built)).jaxpr) / step_flops(built)


def test_products_of_loops_devices_conditions_and_kernels():
    count = lambda fn, *args: jaxpr_flops(jax.make_jaxpr(fn)(*args))
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
    assert count(jnp.matmul, a, b) == 2 * 3 * 4 * 5 * 6
    square = jnp.ones((4, 4))
    turns = lambda x: jax.lax.scan(lambda x, _: (x @ square, None), x, length=7)[0]
    assert count(jax.jit(turns), square) == 7 * 2 * 4**3
    either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x)
    assert count(either, square) == 2 * 2 * 4**3
    image, kernel = jnp.ones((2, 3, 9)), jnp.ones((8, 3, 5))  # batch, features, width; out, in, width
    fold = lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "VALID")
    assert count(fold, image, kernel) == 2 * (2 * 8 * 5) * 3 * 5
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec("a")
    rows = jax.shard_map(lambda x: x @ square, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={"a"})
    assert count(rows, square) == 2 * 4**3


@pytest.mark.parametrize(("sharding", "accum"), [(DDP.over(data=8), 1), (DDP.over(data=8), 2), (TP.over(tensor=8), 1)])
def test_a_step_does_the_models_operations(sharding, accum):
    assert ratio(sharding, accum_steps=accum) == pytest.approx(1, rel=1e-6)


def test_remat_adds_what_it_computes_again():
    # Under "full" the last product of a block is not recomputed, as nothing reads it; under "names" query, key and
    # value are not either; under "dots" only the scores and the weighted sum are recomputed.
    block = 12 * D**2 + 2 * D * T
    again = {"full": block - 4 * D**2, "names": block - 4 * D**2 - 3 * D**2, "dots": 2 * D * T}
    for remat, operations in again.items():
        assert ratio(remat=remat) == pytest.approx(1 + operations / block * SHARE / 3, rel=0.02), remat


def test_a_pipeline_has_its_bubble_and_what_its_schedule_computes_again():
    last = 1 - SHARE  # the output map
    of = lambda pipeline, remat="none": ratio(
        dataclasses.replace(PP.over(stage=2, data=4), pipeline=pipeline), remat, accum_steps=4
    )
    # Four microbatches in five ticks, or nine half as long with two virtual_stages. Logits are recomputed.
    assert of("gpipe") == pytest.approx(SHARE * 5 / 4 + last * 4 / 3, rel=0.01)
    assert of("circular") == pytest.approx(SHARE * 9 / 8 + last * 4 / 3, rel=0.01)
    assert of("gpipe", "full") > of("gpipe", "names") > of("gpipe", "dots") > of("gpipe")
    # The output map runs in each tick on both stages, also in idle ones: 6 ticks of 4/3 the work.
    assert of("1f1b") == pytest.approx((SHARE * 4 / 3 + last * 2) * 6 / 4, rel=0.02)


def test_only_what_is_trained_has_gradients():
    e = program().experiment
    assert step_flops(program()) == flops_per_token(e) * B * T
    tuned = program(peft=LoRA(rank=2))
    assert step_flops(tuned) == pytest.approx(2 / 3 * flops_per_token(e) * B * T, rel=0.1)
    assert ratio(peft=LoRA(rank=2)) == pytest.approx(1, rel=1e-6)
    assert step_flops(program(peft=LoRA(rank=2), remat="full")) == step_flops(tuned)


@pytest.mark.parametrize("config", ["elmo/tiny.py", "bert/finetune.py:multiple_choice", "bert/tiny_pretrain.py"])
def test_a_configs_figure_is_what_its_step_does(config):
    """Two directions over words, four sequences an example, and logits at some positions alone."""
    e = cli.load(f"configs/{config}")
    layers = {} if "elmo" in config else {"num_layers": 1}
    built = build(dataclasses.replace(e, model=e.model.with_body(vocab_size=2048, **layers)), jax.devices()[:1])
    assert jaxpr_flops(built.step.trace(built.abstract, step_batch(built)).jaxpr) == pytest.approx(
        step_flops(built), rel=1e-3
    )
