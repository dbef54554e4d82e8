"""Fewer key heads than devices on `tensor`: the remedy of `check_heads` trains as one device."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.packing import pack
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.nn.kernels import Blocked, DotProduct, Einsum, Flash
from jaxnlp.nn.ring import Ring
from jaxnlp.optim import OptimConfig
from jaxnlp.sharding.presets import DP_PP_TP, TP, TP_SP
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

V, B, T = 16, 4, 128  # a full block of `Flash`
LLAMA = LlamaConfig(vocab_size=V, num_layers=2, num_heads=8, num_kv_heads=2, embed_dim=32, mlp_dim=32, scan_layers=True)
FLASH = Flash(block=128, interpret=True)
CASES = {
    "einsum": (Einsum(), TP, {"data": 2}),
    "einsum, its residual stream split": (Einsum(), TP_SP, {"data": 2}),
    "blocked": (Blocked(block=50), TP, {"data": 2}),
    "dot_product": (DotProduct(), TP, {"data": 2}),
    "flash": (FLASH, TP, {"data": 2}),
    "flash, its residual stream split": (FLASH, TP_SP, {"data": 2}),
    "flash, in stages": (FLASH, DP_PP_TP, {"stage": 2}),
    "ring": (Ring(), TP, {"sequence": 2}),
}
QUICK = ("einsum", "flash, its residual stream split")


def trained(kernel, sharding: Sharding, devices: int):
    """Losses and parameters of two SGD steps, with the same initial parameters on any mesh."""
    e = Experiment(
        model=dataclasses.replace(LLAMA, attention=kernel),
        data=DataConfig(seq_len=T, batch_size=B),
        optim=OptimConfig(name="sgd", learning_rate=0.1, schedule="constant", clip_norm=None, weight_decay=0.0),
        sharding=sharding,
        accum_steps=2,
        num_steps=2,
    )
    program, random, losses = build(e, jax.devices()[:devices]), np.random.default_rng(0), []
    state = program.init()
    for _ in range(2):
        batch = pack(random.integers(0, V, (B, T + 1)).astype(np.int32), V - 1)
        state, metrics = program.step(state, program.shard_batch(batch))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@functools.cache
def one_device():
    return trained(Einsum(), Sharding(), 1)


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES])
def test_a_tensor_axis_wider_than_key_heads_equals_one_device(case):
    kernel, preset, sizes = CASES[case]
    whole = {table: {**getattr(preset, table), "kv_heads": None} for table in ("params", "activations")}
    losses, params = trained(kernel, dataclasses.replace(preset, **whole).over(**sizes, tensor=4), 8)
    wanted_losses, wanted_params = one_device()
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), params, wanted_params)
