"""The train step of encoder-decoders: eight devices equal one, microbatches equal the full batch."""

import functools

import jax
import numpy as np
import pytest

from jaxnlp.data import encoder_decoder
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.models.t5 import T5Config
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.optim import OptimConfig
from jaxnlp.peft.prompt import Prompt
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import TENSOR, Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

SIZES = {"vocab_size": 32, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4, "embed_dim": 16, "mlp_dim": 24}
MODELS = {"transformer": TransformerConfig(**SIZES), "t5": T5Config(**SIZES, head_dim=6)}
CUBE = Sharding(mesh=MeshConfig(data=2, fsdp=2, tensor=2), params={**TENSOR, "embed": "fsdp"})
S, T = 12, 9


def batch(seed):
    random = np.random.default_rng(seed)
    text = lambda longest: random.integers(0, 31, random.integers(1, longest + 1))
    return encoder_decoder.collate_pairs([(text(S), text(T)) for _ in range(8)], S, T, fill=31, decoder_start_id=31)


def run(name, devices, **fields):
    e = Experiment(
        model=MODELS[name],
        data=DataConfig(seq_len=S, batch_size=8, task=TextPairs(target_len=T)),
        objective=Seq2Seq(label_smoothing=0.1),
        optim=OptimConfig(name="sgd", learning_rate=0.3, schedule="constant", clip_norm=None),
        num_steps=10,
        **fields,
    )
    e.model.dropout_rate = 0.0
    program = build(e, jax.devices()[:devices])
    state, losses = program.init(), []
    for i in range(3):
        state, metrics = program.step(state, program.shard_batch(batch(i)))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.params), losses


@functools.cache
def plain(name):
    return run(name, 1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("devices", "fields"), [(8, {"sharding": CUBE}), (1, {"accum_steps": 4})], ids=["2x2x2", "accumulation"]
)
def test_equal_to_one_device_and_one_batch(name, devices, fields):
    params, losses = run(name, devices, **fields)
    wanted, wanted_losses = plain(name)
    assert wanted_losses[0] != wanted_losses[1]
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), params, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_before_the_inputs_is_tuned_over_a_mesh_as_on_one_device(name):
    method = Prompt(length=4)
    wanted, losses = run(name, 1, peft=method)
    actual, others = run(name, 8, peft=method, sharding=CUBE, accum_steps=2)
    assert len(set(losses)) == 3
    np.testing.assert_allclose(others, losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, wanted)
