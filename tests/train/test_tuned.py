"""Tuning methods in runs: over meshes as on one device, resumed to the bit, and read again with the base they had."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import FineTuned
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.optim import OptimConfig
from jaxnlp.peft.adapter import Adapter
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.partial import BitFit
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt
from jaxnlp.peft.tuning import like
from jaxnlp.sharding.presets import THREE_D, TP_SP, ZERO3
from jaxnlp.sharding.rules import TENSOR, Sharding
from jaxnlp.train import resume
from jaxnlp.train.base import fingerprint
from jaxnlp.train.experiment import Experiment
from jaxnlp.train.load import load
from jaxnlp.train.loop import train
from jaxnlp.train.pretrained import Pretrained
from jaxnlp.train.program import build

from ..experiments import small
from .test_meshes import B, T, batch
from .test_pretrained import CLASSES, GPT
from .test_pretrained import run as pretrained_run

METHODS = {
    "lora": LoRA(rank=2, targets=("query", "value", "out", "up", "down", "embed"), dropout_rate=0.1, b_rate=4.0),
    "dora": LoRA(rank=2, targets=("query", "down"), dora=True, base_dtype="bfloat16"),
    "adapter": Adapter(bottleneck=4),
    "bitfit": BitFit(),
    "prefix": Prefix(length=2, hidden_dim=4),
}
ZERO3_TP = dataclasses.replace(
    ZERO3.on(fsdp=4, tensor=2),
    params={**TENSOR, "embed": "fsdp"},
    gradients={**TENSOR, "embed": "fsdp"},
    optimizer={**TENSOR, "embed": "fsdp"},
)
MESHES = {"zero3 tp": ZERO3_TP, "tp sp": TP_SP.on(data=4, tensor=2), "three": THREE_D.on(data=2, stage=2, tensor=2)}


def experiment(method: str, sharding: Sharding) -> Experiment:
    model = GPTConfig(
        vocab_size=64, max_len=T + 2, num_layers=2, num_heads=2, embed_dim=16, dropout_rate=0.1, scan_layers=True
    )
    return Experiment(
        model=model,
        objective=CausalLM(),
        data=DataConfig(seq_len=T, batch_size=B, attend_across_documents=True),
        optim=OptimConfig(name="sgd", learning_rate=0.5, schedule="constant", weight_decay=0.0),
        tuning=METHODS[method],
        sharding=sharding,
        accum_steps=2,
        steps=10,
    )


def trained(method: str, sharding: Sharding, devices: int):
    """(losses, tuned parameters, whether the frozen ones are as they were) of three steps."""
    program = build(experiment(method, sharding), jax.devices()[:devices])
    state, losses = program.init(), []
    before = fingerprint(state.frozen)
    shapes = jax.tree.map(lambda x: x.shape, state.opt_state)
    assert len(jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, tuple))) < 4 * len(jax.tree.leaves(state.params))
    for i in range(3):
        state, metrics = program.step(state, program.put(batch("gpt", i)))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params), fingerprint(state.frozen) == before


@functools.cache
def on_one(method: str):
    return trained(method, Sharding(), 1)


@pytest.mark.parametrize(
    ("method", "mesh"),
    [
        pytest.param(method, mesh, marks=() if (method, mesh) == ("lora", "zero3 tp") else pytest.mark.slow)
        for method in METHODS
        for mesh in MESHES
    ],
)
def test_tuned_over_a_mesh_as_on_one_device(method, mesh):
    losses, params, same = trained(method, MESHES[mesh], 8)
    wanted_losses, wanted, _ = on_one(method)
    assert same
    assert len(set(losses)) == 3
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(wanted))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), params, wanted)
