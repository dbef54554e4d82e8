"""Generation over eight devices equals one device's."""

import functools
import types

import jax
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.inference.beam import BeamSearch, beam_search
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.inference.sampling import Sampling
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import TENSOR, Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

SIZES = {"vocab_size": 32, "num_layers": 1, "num_heads": 4, "embed_dim": 16}
MODELS = {
    "decoder": GPTConfig(max_length=32, **SIZES),
    "encoder-decoder": TransformerConfig(max_length=32, mlp_dim=32, **SIZES),
}
MESHES = {
    "data 2, tensor 4": Sharding(mesh=MeshConfig(tensor=4), params=dict(TENSOR)),
    "2x2x2": Sharding(mesh=MeshConfig(data=2, fsdp=2, tensor=2), params={**TENSOR, "embed": "fsdp"}),
}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 9]]
TOKENIZER = types.SimpleNamespace(eos_id=30, vocab_size=31)


def outputs(model, sharding, devices, prompts):
    e = Experiment(model=MODELS[model], data=DataConfig(seq_len=16, batch_size=8), sharding=sharding)
    program = build(e, jax.devices()[:devices])
    params = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, program.init().params)
    generator = make_generator(program.bind(TOKENIZER))
    sampling = Sampling(temperature=1.0, min_p=0.01, repetition_penalty=1.2)
    on_tokens = (lambda row, ids: None) if devices > 1 else None  # in chunks on eight devices, in one piece on one
    forced = [[3]] * len(prompts)
    drawn = generator.generate(params, prompts, 12, sampling, 5, forced_prefix=forced, on_tokens=on_tokens)
    beams = beam_search(generator, params, prompts, 12, BeamSearch(num_beams=3, num_return=2))
    return drawn, [h for row in beams for h in row]


@functools.cache
def plain(model, count):
    return outputs(model, Sharding(), 1, PROMPTS[:count])


@pytest.mark.parametrize(
    ("model", "mesh", "count"),
    [
        ("decoder", "data 2, tensor 4", 4),
        ("decoder", "2x2x2", 3),  # the number of rows is not divisible by 4
        ("encoder-decoder", "data 2, tensor 4", 4),
        pytest.param("encoder-decoder", "2x2x2", 3, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_equal_one(model, mesh, count):
    actual, wanted = outputs(model, MESHES[mesh], 8, PROMPTS[:count]), plain(model, count)
    assert len({tuple(x.ids) for x in actual[0]}) == count
    for ours, theirs in zip(actual, wanted, strict=True):
        assert [x.ids for x in ours] == [x.ids for x in theirs]
        for x, y in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x.log_probs, y.log_probs, atol=1e-4)
            np.testing.assert_allclose(x.score, y.score, atol=1e-4)
