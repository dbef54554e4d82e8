"""Properties of the 2017 Transformer and T5; parity is in test_transformer_parity.py and tests/interop."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.t5 import T5Config, t5_v1_0
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.nn import kernels, mlp, norms, positions
from jaxnlp.sharding.functional import abstract_params, init_params, make_apply
from jaxnlp.sharding.rules import REPLICATED

SIZES = {"vocab_size": 33, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2, "embed_dim": 16, "mlp_dim": 24}
INPUTS = jax.random.randint(jax.random.key(1), (2, 9), 0, 33)
TOKENS = jax.random.randint(jax.random.key(2), (2, 7), 0, 33)
SEGMENTS = jnp.asarray([[1] * 9, [1] * 5 + [0] * 4])
CONFIGS = {
    "transformer": TransformerConfig(**SIZES),
    "pre-norm, learned, untied": TransformerConfig(
        **SIZES, norm_position="pre", positions=positions.Learned(), max_length=20, tie_embeddings=False
    ),
    "rotary, gated, scanned": TransformerConfig(
        **SIZES, positions=positions.Rotary(), mlp=mlp.GatedMLP(), norm=norms.RMSNorm(), scan_layers=True
    ),
    "alibi, blocked": TransformerConfig(
        **SIZES, positions=positions.Alibi(), attention=kernels.Blocked(block=4), remat="dots"
    ),
    "t5": T5Config(**SIZES, head_dim=6),
    "t5 1.0, scanned": t5_v1_0(**SIZES, head_dim=6, scan_layers=True),
    "t5, rotary": T5Config(**SIZES, head_dim=6, positions=positions.Rotary()),
}


@functools.cache
def built(name):
    config = CONFIGS[name]
    config.check()
    params = init_params(config.build(), jax.random.key(0), INPUTS, TOKENS)
    return config, params, jax.jit(make_apply(config.build()), static_argnames="logits_to_keep")


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_steps_equal_the_whole(name):
    config, params, apply = built(name)
    whole = apply(params, INPUTS, TOKENS, input_segments=SEGMENTS)
    logits, cache = apply(params, INPUTS, TOKENS[:, :3], input_segments=SEGMENTS, cache=config.init_cache(2, 10))
    keys, _ = cache["cross"] if config.scan_layers else cache["cross"][0]
    width = getattr(config, "key_dim", None) or config.head_dim
    assert keys.shape[-4:] == (2, 2, 9, width) and cache["input_segments"].shape == (2, 9)
    parts = [logits]
    for i in range(3, 7):
        logits, cache = apply(params, None, TOKENS[:, i : i + 1], cache=cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=3e-5)
    last = apply(params, INPUTS, TOKENS, input_segments=SEGMENTS, logits_to_keep=2)
    np.testing.assert_allclose(last, whole[:, -2:], atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_see_all_inputs_and_no_later_output(name):
    _, params, apply = built(name)
    out = apply(params, INPUTS, TOKENS)
    later = apply(params, INPUTS, TOKENS.at[:, 4].add(1) % 33)
    np.testing.assert_array_equal(out[:, :4], later[:, :4])
    assert (np.abs(np.asarray(out - later))[:, 4:].max(-1) > 1e-6).all()
    for place in (0, 8):
        other = apply(params, INPUTS.at[:, place].add(1) % 33, TOKENS)
        assert (np.abs(np.asarray(out - other)).max(-1) > 1e-7).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_of_inputs_changes_nothing(name):
    _, params, apply = built(name)
    alone = apply(params, INPUTS[1:, :5], TOKENS[1:])
    padded = apply(params, INPUTS, TOKENS, input_segments=SEGMENTS)
    np.testing.assert_allclose(padded[1:], alone, atol=3e-5)
    other = apply(params, INPUTS.at[1, 5:].add(1) % 33, TOKENS, input_segments=SEGMENTS)
    np.testing.assert_array_equal(padded, other)


@pytest.mark.parametrize("name", ["transformer", "t5", "alibi, blocked"])
def test_packed_pairs_equal_pairs_alone(name):
    config, params, apply = built(name)
    places = {"positions": jnp.asarray([[*range(7), *range(4), 0, 0]])}
    if not isinstance(config, T5Config):
        places["input_positions"] = jnp.asarray([[*range(9), *range(5), 0]])
    packed = apply(
        params,
        jnp.concatenate([INPUTS[:1], INPUTS[1:, :6]], 1),
        jnp.concatenate([TOKENS[:1], TOKENS[1:, :6]], 1),
        input_segments=jnp.asarray([[1] * 9 + [2] * 5 + [0]]),
        segment_ids=jnp.asarray([[1] * 7 + [2] * 4 + [0] * 2]),
        **places,
    )
    first, second = apply(params, INPUTS[:1], TOKENS[:1]), apply(params, INPUTS[1:, :5], TOKENS[1:, :4])
    np.testing.assert_allclose(packed[:, :7], first, atol=3e-5)
    np.testing.assert_allclose(packed[:, 7:11], second, atol=3e-5)


@pytest.mark.parametrize("name", ["transformer", "t5"])
def test_variants_that_change_no_number(name):
    config, params, apply = built(name)
    stacked = {}
    for side, count in (("encoder", 2), ("decoder", 3)):
        layers = [params[side][f"block_{i}"] for i in range(count)]
        rest = {key: x for key, x in params[side].items() if not key.startswith("block_")}
        stacked[side] = {**rest, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    loss = lambda c: jax.value_and_grad(lambda p: jnp.sin(make_apply(c.build())(p, INPUTS, TOKENS)).sum())
    wanted, wanted_grad = jax.jit(loss(config))(params)
    for changes in ({"scan_layers": True}, {"scan_layers": True, "remat": "full"}, {"remat": "dots"}):
        variant_params = {**params, **stacked} if "scan_layers" in changes else params
        actual, grad = jax.jit(loss(dataclasses.replace(config, **changes)))(variant_params)
        np.testing.assert_allclose(actual, wanted, rtol=1e-5)
        np.testing.assert_allclose(grad["embed"]["embedding"], wanted_grad["embed"]["embedding"], atol=5e-4, rtol=5e-4)


@pytest.mark.parametrize("name", ["transformer", "t5"])
def test_dropout_needs_a_key_and_differs_with_it(name):
    _, params, apply = built(name)
    draw = lambda seed: apply(params, INPUTS, TOKENS, key=jax.random.key(seed))
    np.testing.assert_array_equal(draw(0), draw(0))
    assert not np.allclose(draw(0), draw(1)) and not np.allclose(draw(0), apply(params, INPUTS, TOKENS))


BIG = {"embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096}
COUNTS = [  # millions of parameters in the paper; tolerance
    (TransformerConfig(vocab_size=37000), 63_082_496, 65, 0.03),  # table 3, base; "about 37000 tokens"
    (TransformerConfig(vocab_size=37000, **BIG), 214_245_376, 213, 0.01),  # big
    (t5_v1_0(vocab_size=32128), 60_506_624, 60, 0.01),  # section 3.7: small, base, large, 3B, 11B
    (
        t5_v1_0(vocab_size=32128, num_layers=12, num_heads=12, embed_dim=768, mlp_dim=3072),
        222_903_552,
        220,
        0.015,
    ),
    (t5_v1_0(vocab_size=32128, num_layers=24, **BIG), 737_668_096, 770, 0.045),
    (
        t5_v1_0(vocab_size=32128, num_layers=24, num_heads=32, head_dim=128, embed_dim=1024, mlp_dim=16384),
        2_851_598_336,
        2800,
        0.02,
    ),
    (T5Config(vocab_size=32128), 76_961_152, 77, 0.01),  # version 1.1, small
]


@pytest.mark.parametrize(("config", "count", "millions", "near"), COUNTS)
def test_parameter_counts_are_the_papers(config, count, millions, near):
    shapes, axes = abstract_params(config.build(), *config.example_inputs(1, 4))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count
    assert count / 1e6 == pytest.approx(millions, rel=near)
    names = {name for leaf in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)) for name in leaf}
    assert names <= set(REPLICATED)


@pytest.mark.parametrize("name", ["transformer", "t5"])
def test_flops_are_counted_from_the_products(name):
    config, params, _ = built(name)
    products = lambda tree: sum(x.size for p, x in jax.tree_util.tree_leaves_with_path(tree) if "kernel" in str(p))
    encoder, decoder = products(params["encoder"]), products(params["decoder"])
    width = 2 * (getattr(config, "key_dim", None) or config.head_dim)
    S, T = 40, 10
    cross_keys = 3 * 2 * 16 * width  # the decoder's kernels that are applied to the inputs
    attention = 4 * width * (2 * S * S + 3 * T * (T + S))
    output = 16 * 33 * T
    wanted = 3 * (2 * encoder * S + 2 * cross_keys * S + 2 * (decoder - cross_keys) * T + attention + 2 * output)
    assert config.flops_per_token(S, T / S) * S == pytest.approx(wanted)


def test_initial_logits_and_scores_are_of_moderate_size():
    for name in ("transformer", "t5"):
        _, params, apply = built(name)
        assert 0.1 < float(jnp.std(apply(params, INPUTS, TOKENS))) < 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TransformerConfig(**{**SIZES, "num_heads": 3}), "num_heads=3"),
        (TransformerConfig(**{**SIZES, "embed_dim": 15, "num_heads": 3}), r"embed_dim=15: expected an even number"),
        (TransformerConfig(**SIZES, norm_position="middle"), "norm_position='middle'"),
        (T5Config(**SIZES, positions=positions.Learned()), r"positions='Learned\(\)': T5 has no position table"),
        (T5Config(**{**SIZES, "num_decoder_layers": 0}), "num_decoder_layers=0"),
        (T5Config(**SIZES, attention=kernels.DotProduct()), r"dropout_rate=0\.1: attention=DotProduct\(\)"),
    ],
)
def test_bad_fields_are_named(config, message):
    with pytest.raises(FieldError, match=message):
        config.check()


def test_what_cannot_be_computed_is_refused():
    config, params, apply = built("pre-norm, learned, untied")
    with pytest.raises(UserError, match=r"max_length=20: the sequence has 21"):
        apply(params, jnp.zeros((1, 21), jnp.int32), TOKENS[:1])
    for name in ("transformer", "t5"):
        config, params, apply = built(name)
        with pytest.raises(UserError, match="pass the inputs in the first call"):
            apply(params, None, TOKENS, cache=config.init_cache(2, 10))
        with pytest.raises(UserError, match="pass the inputs in the first call"):
            apply(params, None, TOKENS)
