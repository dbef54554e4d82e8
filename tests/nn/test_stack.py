"""Layers run by an override equal the stack; the keys of a data shard draw the numbers of its rows."""

import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as extend

from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.positions import RelativeBuckets
from jaxnlp.nn.sharded_rng import local_key
from jaxnlp.nn.stack import override_stack

SIZES = {"vocab_size": 32, "max_length": 8, "num_layers": 4, "num_heads": 2, "embed_dim": 16, "dropout_rate": 0.3}
MODELS = {
    "gpt": GPTConfig(scan_layers=True, **SIZES),
    "gpt, remat": GPTConfig(scan_layers=True, remat="full", positions=RelativeBuckets(), **SIZES),
    "bert": BertConfig(scan_layers=True, heads=("pooler",), **SIZES),
}


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_layers_run_in_two_halves_equal_the_stack_dropout_included(name, dropout):
    model, tokens = MODELS[name].build(), np.arange(16, dtype=np.int32).reshape(2, 8)
    params = nn.meta.unbox(model.init(jax.random.key(0), tokens)["params"])
    rngs = {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}} if dropout else {}
    segments = (tokens % 8 < 6).astype(np.int32)
    apply = lambda params: model.apply({"params": params}, tokens, segment_ids=segments, **rngs)
    wanted = jax.jit(apply)(params)
    seen = []

    def halves(x, layers):
        seen.append(layers.path)
        for part in (slice(0, 2), slice(2, 4)):
            w, keys = jax.tree.map(operator.itemgetter(part), (params["blocks"], layers.keys))
            x = layers.run(w, x, layers.shared, keys)
        return x

    with override_stack(halves):
        actual = jax.jit(apply)({k: v for k, v in params.items() if k != "blocks"})
    assert seen == [("blocks",)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), actual, wanted)
    if dropout:
        quiet = model.apply({"params": params}, tokens, segment_ids=segments)
        assert any(np.abs(a - b).max() > 1e-2 for a, b in zip(*map(jax.tree.leaves, (quiet, wanted)), strict=True))


DRAWS = {
    "bits": jax.random.bits,
    "bernoulli": lambda key, shape: jax.random.bernoulli(
        jax.random.fold_in(jax.random.split(key, 3)[1], 5), 0.3, shape
    ),
    "normal": jax.random.normal,
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_share_of_the_rows_gets_the_numbers_of_its_rows(name):
    key = jax.random.fold_in(jax.random.key(3), 7)
    parts = [DRAWS[name](local_key(key, i), (2, 3, 5)) for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), DRAWS[name](key, (8, 3, 5)))


def test_places_beyond_32_bits():
    share, size = 70_001, 100_000
    key = jax.random.key_data(jax.random.key(3))
    places = np.arange(size, dtype=np.uint64) + np.uint64(share * size)
    assert places[0] > 2**32
    words = np.concatenate([(places >> np.uint64(32)).astype(np.uint32), places.astype(np.uint32)])
    first, second = np.split(np.asarray(extend.threefry_2x32((key[0], key[1]), jnp.asarray(words))), 2)
    local = jax.random.bits(local_key(jax.random.key(3), share), (size,))
    np.testing.assert_array_equal(local, first ^ second)
