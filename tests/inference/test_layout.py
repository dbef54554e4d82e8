"""The weight layout for generation on a CPU leaves the outputs unchanged."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.inference.layout import output_major
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.mlp import GatedMLP
from jaxnlp.nn.policy import Policy
from jaxnlp.sharding.functional import abstract_params, make_apply
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

SEP = 30
MODELS = {
    "gpt2": {},
    "scanned, untied, grouped, gated": {
        "scan_layers": True,
        "tie_embeddings": False,
        "num_kv_heads": 2,
        "mlp": GatedMLP(),
        "use_bias": False,
    },
}


def program(name):
    model = GPTConfig(vocab_size=31, max_length=96, num_layers=2, num_heads=4, embed_dim=16, head_dim=8, **MODELS[name])
    return build(Experiment(model=model, data=DataConfig(seq_len=16, batch_size=4), seed=3), jax.devices()[:1])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 3, 80])  # 80 is more than FEW_ROWS
def test_logits_are_the_same(name, rows):
    p = program(name)
    params = p.init().params
    model = dataclasses.replace(p.experiment.model, policy=Policy(weight_layout="output_major"))
    shapes, axes = abstract_params(model.build(), jnp.zeros((1, 1), jnp.int32))
    laid_out = output_major(params, shapes, axes)
    assert jax.tree.map(jnp.shape, laid_out) == jax.tree.map(lambda x: x.shape, shapes)
    assert jax.tree.map(jnp.shape, laid_out) != jax.tree.map(jnp.shape, params)
    tokens = np.random.default_rng(0).integers(0, 31, (rows, 1))
    ours, plain = make_apply(model.build())(laid_out, tokens), p.apply(params, tokens)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_generator_takes_parameters_as_they_are_and_new_ones_when_they_change(name):
    p = program(name)
    generator = make_generator(p.bind(types.SimpleNamespace(eos_id=SEP, vocab_size=31)))
    plain = dataclasses.replace(generator, apply=p.apply, prepare_params=lambda params: params)
    first = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, p.init().params)
    second = jax.tree.map(lambda x: jnp.roll(x, 1, -1) if x.ndim > 1 else x, first)
    prompts, outputs = [[1, 2, 3], [], [4]], []
    for params in (first, second, first):
        outputs.append(generator(params, prompts, 20))
        assert outputs[-1] == plain(params, prompts, 20)
    assert outputs[0] == outputs[2] != outputs[1]
