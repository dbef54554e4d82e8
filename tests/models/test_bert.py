"""Properties of BERT; parity with transformers is in tests/interop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.bert import BertConfig, roberta
from jaxnlp.nn import kernels, mlp, norms, positions
from jaxnlp.nn.policy import Policy
from jaxnlp.sharding.functional import abstract_params, init_params, make_apply, make_capture
from jaxnlp.sharding.rules import REPLICATED

SIZES = {"vocab_size": 33, "max_length": 24, "num_layers": 2, "num_heads": 4, "embed_dim": 16, "dropout_rate": 0.0}
TOKENS = jax.random.randint(jax.random.key(1), (2, 16), 0, 33)
LARGE = {"num_layers": 24, "num_heads": 16, "embed_dim": 1024}


def built(**changes):
    config = BertConfig(**{**SIZES, **changes})
    config.check()
    params = init_params(config.build(), jax.random.key(0), TOKENS)
    params = jax.tree.map(lambda x: 3 * x if x.ndim > 1 else x, params)
    return config, params, make_apply(config.build())


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (BertConfig(vocab_size=30522), 110_106_428),  # "110M" (section 3), both heads included
        (BertConfig(vocab_size=30522, **LARGE), 336_226_108),  # "340M"
        (BertConfig(vocab_size=30522, heads=("pooler",)), 109_482_240),
        (roberta(), 124_697_433),  # "125M"
    ],
)
def test_parameter_counts_are_the_papers(config, count):
    shapes, axes = abstract_params(config.build(), jnp.zeros((1, 4), jnp.int32))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count
    names = {name for leaf in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)) for name in leaf}
    assert names <= set(REPLICATED)


def test_every_token_sees_every_other():
    _, params, apply = built()
    changed = TOKENS.at[:, 15].set((TOKENS[:, 15] + 1) % 33)
    out, other = apply(params, TOKENS)["hidden"], apply(params, changed)["hidden"]
    assert (np.abs(np.asarray(out - other)).max(-1) > 1e-5).all()


def test_packed_sentences_equal_sentences_alone():
    _, params, apply = built()
    a, b = TOKENS[:1, :7], TOKENS[1:, :9]
    packed = {
        "segment_ids": jnp.asarray([[1] * 7 + [2] * 9 + [0] * 3]),
        "positions": jnp.asarray([[*range(7), *range(9), 0, 0, 0]]),
    }
    out = apply(params, jnp.concatenate([a, b, a[:, :3]], 1), **packed)["masked_lm"]
    alone = jnp.concatenate([apply(params, a)["masked_lm"], apply(params, b)["masked_lm"]], 1)
    np.testing.assert_allclose(out[:, :16], alone, atol=2e-5)


def test_predicted_positions_are_rows_of_the_whole():
    _, params, apply = built()
    masked_positions = jnp.asarray([[3, 0, 15], [7, 7, 1]])
    some = apply(params, TOKENS, masked_positions=masked_positions)["masked_lm"]
    whole = apply(params, TOKENS)["masked_lm"]
    assert some.shape == (2, 3, 33)
    np.testing.assert_allclose(some, jnp.take_along_axis(whole, masked_positions[..., None], 1), atol=1e-6)


def test_types_change_the_output_and_default_to_the_first():
    _, params, apply = built()
    hidden = lambda **kw: apply(params, TOKENS, **kw)["hidden"]
    np.testing.assert_array_equal(hidden(), hidden(token_type_ids=jnp.zeros_like(TOKENS)))
    assert not np.allclose(hidden(), hidden(token_type_ids=jnp.ones_like(TOKENS)), atol=1e-3)


VARIANTS = {
    "scanned": {"scan_layers": True},
    "remat": {"scan_layers": True, "remat": "full"},
    "remat dots": {"remat": "dots"},
    "dot product": {"attention": kernels.DotProduct()},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_that_change_no_number(name):
    config, params, apply = built()
    stacked = {"blocks": jax.tree.map(lambda *x: jnp.stack(x), params["block_0"], params["block_1"])}
    rest = {key: x for key, x in params.items() if not key.startswith("block_")}
    module = BertConfig(**{**SIZES, **VARIANTS[name]}).build()
    variant_params = {**rest, **stacked} if "scan_layers" in VARIANTS[name] else params
    loss = lambda apply: jax.jit(jax.value_and_grad(lambda p: jnp.sin(apply(p, TOKENS)["masked_lm"]).sum()))
    actual, actual_grad = loss(make_apply(module))(variant_params)
    wanted, wanted_grad = loss(apply)(params)
    np.testing.assert_allclose(actual, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        actual_grad["embed"]["embedding"], wanted_grad["embed"]["embedding"], atol=2e-4, rtol=2e-4
    )
    assert config.length_limit == 24


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_position": "pre", "norm": norms.RMSNorm(), "mlp": mlp.GatedMLP(), "positions": positions.Rotary()},
        {"positions": positions.Alibi()},
        {"positions": positions.RelativeBuckets(bidirectional=True)},
        {"positions": positions.Sinusoidal(), "policy": Policy(compute_dtype="bfloat16")},
    ],
)
def test_components_can_be_chosen(changes):
    _, params, apply = built(**changes)
    out = apply(params, TOKENS)
    assert out["masked_lm"].dtype == jnp.float32 and jnp.isfinite(out["masked_lm"]).all()
    order = np.random.default_rng(0).permutation(16)
    moved = apply(params, TOKENS[:, order])["hidden"][:, np.argsort(order)]
    assert not np.allclose(moved, out["hidden"], atol=1e-4)  # the order of tokens matters


def test_dropout_needs_a_key():
    _, params, apply = built(dropout_rate=0.2)
    hidden = lambda key: apply(params, TOKENS, key=key)["hidden"]
    off, on, again = hidden(None), hidden(jax.random.key(0)), hidden(jax.random.key(0))
    np.testing.assert_array_equal(on, again)
    assert not np.allclose(on, off)


def test_hidden_states_and_weights_can_be_seen():
    for scan in (False, True):
        config, params, _ = built(scan_layers=scan)
        out, seen = make_capture(config.build())(params, TOKENS)
        at = "blocks/" if scan else "block_1/"
        last = seen[f"{at}hidden"][-1] if scan else seen[f"{at}hidden"]
        np.testing.assert_allclose(last, out["hidden"], atol=1e-6)
        assert seen[f"{at}attention/attention_weights"].shape[-4:] == (2, 4, 16, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads=3.*use"),
        ({"heads": ("masked",)}, "heads='masked'.*masked_lm, next_sentence, pooler"),
        ({"norm_position": "both"}, "norm_position='both'"),
        ({"num_types": 0}, "num_types=0"),
        ({"positions": positions.Alibi(), "attention": kernels.Flash()}, "attention=Flash.. does not support a bias"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(FieldError, match=message):
        BertConfig(**{**SIZES, **changes}).check()


def test_a_sequence_too_long_is_refused():
    _, params, apply = built()
    with pytest.raises(UserError, match=r"max_length=24: the sequence has 32"):
        apply(params, jnp.zeros((1, 32), jnp.int32))


def test_flops_are_counted_from_the_products():
    config = BertConfig(**SIZES)
    shapes, _ = abstract_params(config.build(), TOKENS)
    kernels_ = sum(x.size for p, x in jax.tree_util.tree_leaves_with_path(shapes["block_0"]) if "kernel" in str(p))
    head = 16 * 16 + 33 * 16
    attention = 4 * 10 * 16
    assert config.flops_per_token(10) == 3 * (2 * (2 * kernels_ + attention) + 2 * head)
    assert config.flops_per_token(10, predicted_fraction=0.15) < config.flops_per_token(10)
