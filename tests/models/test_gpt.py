"""Properties of GPT with every component."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn import kernels, mlp, norms, positions
from jaxnlp.nn.policy import Policy
from jaxnlp.sharding.functional import abstract_params, init_params, make_apply, make_capture

SIZES = {"vocab_size": 33, "max_length": 32, "num_layers": 2, "num_heads": 4, "embed_dim": 16}
LLAMA = {
    "positions": positions.Rotary(),
    "norm": norms.RMSNorm(),
    "mlp": mlp.GatedMLP(),
    "num_kv_heads": 2,
    "use_bias": False,
    "tie_embeddings": False,
}
VARIANTS = {
    "gpt2": {},
    "llama-like": LLAMA,
    "post-norm, sinusoidal": {"norm_position": "post", "positions": positions.Sinusoidal()},
    "softcaps, qk-norm": {"attention_softcap": 5.0, "logit_softcap": 3.0, "qk_norm": norms.RMSNorm()},
    "scanned": {"scan_layers": True, **LLAMA},
    "blocked": {"attention": kernels.Blocked(block=5)},
    "alibi, window": {"positions": positions.Alibi(), "window": 6, "attention": kernels.Blocked(block=5)},
    "buckets, scanned": {"positions": positions.RelativeBuckets(num_buckets=6, max_distance=12), "scan_layers": True},
    "bf16": {"policy": Policy(compute_dtype="bfloat16")},
}


@functools.cache
def built(name: str):
    config = GPTConfig(**SIZES, **VARIANTS[name])
    config.check()
    module = config.build()
    params = init_params(module, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    params = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)
    return config, params, jax.jit(make_apply(module))


def tokens(B=2, T=16, seed=1):
    return jax.random.randint(jax.random.key(seed), (B, T), 0, SIZES["vocab_size"])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_future_token_has_no_gradient(name):
    config, params, _ = built(name)
    apply = make_apply(config.build())

    def logit(table, at):
        # One row of the table per position, so that each position has a separate gradient.
        ids = jnp.arange(12)[None]
        out = apply({**params, "embed": {"embedding": params["embed"]["embedding"].at[:12].set(table)}}, ids)
        return out[0, at, 20].astype(jnp.float32)

    grad = jax.jit(jax.grad(logit))(params["embed"]["embedding"][:12], 5)
    touched = np.abs(np.asarray(grad)).max(axis=1) > 0
    np.testing.assert_array_equal(touched, np.arange(12) <= 5)


def test_under_post_norm_each_block_returns_normed_states():
    config, params, _ = built("post-norm, sinusoidal")
    _, seen = make_capture(config.build())(params, tokens())
    for i in range(config.num_layers):
        hidden = np.asarray(seen[f"block_{i}/hidden"])
        np.testing.assert_allclose(hidden.mean(-1), 0.0, atol=1e-5)
        np.testing.assert_allclose(hidden.var(-1), 1.0, atol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_documents_equal_documents_alone(name):
    _, params, apply = built(name)
    a, b = tokens(1, 7, 2), tokens(1, 9, 3)
    packed = jnp.concatenate([a, b], axis=1)
    segment_ids = jnp.asarray([[1] * 7 + [2] * 9])
    place = jnp.concatenate([jnp.arange(7), jnp.arange(9)])[None]
    out = apply(params, packed, segment_ids=segment_ids, positions=place)
    alone = jnp.concatenate([apply(params, a), apply(params, b)], axis=1)
    np.testing.assert_allclose(out, alone, atol=3e-2 if name == "bf16" else 2e-5)
    together = apply(params, packed, positions=place)  # the control: without segments they leak
    assert np.abs(np.asarray(together - alone)[:, 7:]).max() > (0.05 if name == "bf16" else 2e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_steps_equal_the_whole_sequence(name):
    config, params, apply = built(name)
    ids = tokens()
    whole = apply(params, ids)
    cache = config.init_cache(2, 20)
    parts = []
    for part in (ids[:, :5], ids[:, 5:6], ids[:, 6:7], ids[:, 7:16]):
        logits, cache = apply(params, part, cache=cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=3e-2 if name == "bf16" else 2e-5)


def test_scanned_equals_unrolled():
    config, params, apply = built("scanned")
    blocks = params["blocks"]
    unrolled = {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(2)}
    plain = make_apply(GPTConfig(**SIZES, **LLAMA).build())
    out = plain({**{k: v for k, v in params.items() if k != "blocks"}, **unrolled}, tokens())
    np.testing.assert_allclose(out, apply(params, tokens()), atol=2e-5)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_memory_and_not_the_gradient(remat, scan):
    def grads(remat):
        config = GPTConfig(**SIZES, remat=remat, scan_layers=scan, dropout_rate=0.1)
        apply = make_apply(config.build())
        params = init_params(config.build(), jax.random.key(0), tokens())
        loss = lambda p: jnp.sin(apply(p, tokens(), key=jax.random.key(3))).sum()
        return jax.jit(jax.grad(loss))(params), jax.make_jaxpr(jax.grad(loss))(params)

    (actual, program), (wanted, _) = grads(remat), grads("none")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), actual, wanted)
    assert "checkpoint" in str(program) or "remat" in str(program)


def test_dropout_needs_a_key_and_changes_the_output():
    config = GPTConfig(**SIZES, dropout_rate=0.2)
    apply = make_apply(config.build())
    params = init_params(config.build(), jax.random.key(0), tokens())
    off, on, again, other = (apply(params, tokens(), key=k) for k in (None, *(jax.random.key(i) for i in (1, 1, 2))))
    np.testing.assert_array_equal(on, again)
    assert not np.allclose(on, off) and not np.allclose(on, other)
    np.testing.assert_array_equal(off, apply(params, tokens()))


def test_logits_are_float32_and_parameters_keep_their_dtype():
    for policy in (Policy(compute_dtype="bfloat16"), Policy(matmul_dtype="bfloat16"), Policy(compute_dtype="float16")):
        module = GPTConfig(**SIZES, policy=policy).build()
        params = init_params(module, jax.random.key(0), tokens())
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert make_apply(module)(params, tokens()).dtype == jnp.float32


def test_every_parameter_names_its_axes():
    for name in VARIANTS:
        shapes, axes = abstract_params(built(name)[0].build(), tokens())
        leaves = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
        for leaf, names in zip(jax.tree.leaves(shapes), leaves, strict=True):
            assert len(names) == leaf.ndim and None not in names


def test_too_long_a_sequence_is_an_error_and_not_a_wrong_position():
    _, params, apply = built("gpt2")
    with pytest.raises(UserError, match="max_length=32: the sequence has 33"):
        apply(params, tokens(1, 33))
    assert built("llama-like")[2](built("llama-like")[1], tokens(1, 40)).shape == (1, 40, 33)


def test_parameter_count_of_gpt2_small_is_the_papers():
    shapes, _ = abstract_params(GPTConfig(vocab_size=50257).build(), jax.ShapeDtypeStruct((1, 8), jnp.int32))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 124_439_808


@pytest.mark.parametrize("name", ["gpt2", "llama-like"])
def test_flops_are_what_the_compiler_counts(name):
    config, params, _ = built(name)
    wide = GPTConfig(**{**SIZES, **VARIANTS[name], "embed_dim": 256, "vocab_size": 512, "mlp_dim": 768})
    apply = make_apply(wide.build())
    params = jax.eval_shape(lambda: init_params(wide.build(), jax.random.key(0), tokens(4, 32)))
    loss = lambda p, t: jnp.sin(apply(p, t)).sum()
    cost = jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct((4, 32), jnp.int32)).compile().cost_analysis()
    assert wide.flops_per_token(32) * 4 * 32 == pytest.approx(cost["flops"], rel=0.06)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_not_rounded_to_the_compute_dtype(tied):
    policy = Policy(compute_dtype="bfloat16")
    config = GPTConfig(
        vocab_size=64, max_length=8, num_layers=1, num_heads=2, embed_dim=16, tie_embeddings=tied, policy=policy
    )
    tokens = jnp.arange(8)[None]
    params = init_params(config.build(), jax.random.key(0), tokens)
    logits = make_apply(config.build())(params, tokens)
    assert logits.dtype == jnp.float32
    assert np.mean(np.asarray(logits) == np.asarray(logits.astype(jnp.bfloat16), np.float32)) < 0.1
