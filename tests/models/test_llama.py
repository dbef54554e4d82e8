"""Properties of Llama; parity with transformers is in tests/interop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError
from jaxnlp.inference.decode import Generator
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.nn import kernels, norms, positions
from jaxnlp.sharding.functional import abstract_params, init_params, make_apply
from jaxnlp.sharding.rules import REPLICATED

SIZES = {"vocab_size": 33, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 16, "mlp_dim": 24}
VARIANTS = {
    "plain": {},
    "qwen3-like": {"qk_norm": norms.RMSNorm(), "head_dim": 6, "tie_embeddings": True},
    "mistral-like": {"window": 5, "scan_layers": True},
    "yarn, biases": {"positions": positions.Rotary(scaling=positions.Yarn()), "qkv_bias": True, "out_bias": True},
    "alibi": {"positions": positions.Alibi(), "attention": kernels.Blocked(block=4)},
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 16), 0, 33)
LLAMA3 = {"vocab_size": 128256, "num_kv_heads": 8, "mlp_dim": 14336}


def built(name):
    config = LlamaConfig(**{**SIZES, **VARIANTS[name]})
    config.check()
    params = init_params(config.build(), jax.random.key(0), TOKENS)
    return config, jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params), make_apply(config.build())


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LlamaConfig(vocab_size=32000), 6_738_415_616),  # Llama-2 7B
        (LlamaConfig(**LLAMA3), 8_030_261_248),  # Llama-3 8B
        (LlamaConfig(vocab_size=32000, num_kv_heads=8, mlp_dim=14336, window=4096), 7_241_732_096),  # Mistral 7B
    ],
)
def test_parameter_counts_are_the_published_ones(config, count):
    shapes, axes = abstract_params(config.build(), jnp.zeros((1, 4), jnp.int32))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count
    names = {name for leaf in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)) for name in leaf}
    assert names <= set(REPLICATED)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_steps_and_packed_documents_equal_the_plain_run(name):
    config, params, apply = built(name)
    apply = jax.jit(apply)
    whole = apply(params, TOKENS)
    cache, parts = config.init_cache(2, 20), []
    for part in (TOKENS[:, :5], TOKENS[:, 5:6], TOKENS[:, 6:16]):
        logits, cache = apply(params, part, cache=cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)
    packed = {
        "segment_ids": jnp.asarray([[1] * 7 + [2] * 9]),
        "positions": jnp.asarray([[*range(7), *range(9)]]),
    }
    out = apply(params, jnp.concatenate([TOKENS[:1, :7], TOKENS[1:, :9]], 1), **packed)
    alone = jnp.concatenate([whole[:1, :7], whole[1:, :9]], 1)
    np.testing.assert_allclose(out, alone, atol=2e-5)


def test_it_generates():
    config, params, apply = built("qwen3-like")
    generator = Generator(apply, config.init_cache, config.length_limit, eos_id=32, vocab_size=33)
    generated = generator(params, [[1, 2, 3], [4]], 6)
    row = [32, 1, 2, 3]
    for token in generated[0]:
        assert token == int(apply(params, jnp.asarray([row]))[0, -1].argmax())
        row.append(token)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads=3.*num_heads=4"),
        ({"head_dim": 5}, "head_dim=5.*even"),
        ({"positions": positions.Learned()}, r"positions=.*Rotary\(\)"),
        ({"window": 0}, "window=0"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(FieldError, match=message):
        LlamaConfig(**{**SIZES, **changes}).check()
