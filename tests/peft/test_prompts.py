"""Soft prompts and prefixes: equivalence to tokens, their positions, and generation with a cache after them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.t5 import T5Config
from jaxnlp.nn.positions import Alibi, Rotary
from jaxnlp.peft.method import SHARED
from jaxnlp.peft.prefix import KEY, VALUE, Prefix
from jaxnlp.peft.prompt import PROMPT, Prompt, PTuning
from jaxnlp.peft.tuning import attach
from jaxnlp.sharding.functional import init_params, make_apply
from jaxnlp.trees import merge

from .test_properties import B, D, T, V, gpt, model, moved

P = 3
MODELS = {
    "gpt": gpt(),
    "scanned": gpt(scan_layers=True, remat="full", num_kv_heads=1, positions=Rotary()),
    "alibi": gpt(positions=Alibi()),
    "bert": BertConfig(
        vocab_size=V, max_length=16, num_layers=2, num_heads=2, embed_dim=D, heads=("masked_lm", "pooler")
    ),
}


def begun(config, method):
    module = config.build()
    tokens = jax.random.randint(jax.random.key(0), (B, T), 1, V)
    base = init_params(module, jax.random.key(1), tokens)
    tuning = attach(method, module, *config.example_inputs(B, T))
    return tuning, base, tuning.init(jax.random.key(2), base), make_apply(module), tokens


def logits(out):
    return out["masked_lm"] if isinstance(out, dict) else out


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_of_words_is_those_words_in_front(name):
    config = MODELS[name]
    tuning, base, tuned, apply, tokens = begun(config, Prompt(length=P, init="ids", ids=(4, 9, 2)))
    words = jnp.broadcast_to(jnp.array([4, 9, 2]), (B, P))
    wanted = logits(apply(base, jnp.concatenate([words, tokens], axis=1)))[:, P:]
    actual = logits(tuning.apply(apply)(merge(base, tuned), tokens))
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


def test_padding_places_and_types_go_along():
    tuning, base, tuned, apply, tokens = begun(MODELS["bert"], Prompt(length=P, init="ids", ids=(4, 9, 2)))
    segments = jnp.array([[1] * T, [1] * 4 + [0] * (T - 4)])
    token_type_ids, masked_positions = jnp.array([[0, 0, 0, 1, 1, 1]] * B), jnp.array([[1, 4], [0, 2]])
    words = jnp.broadcast_to(jnp.array([4, 9, 2]), (B, P))
    front = lambda x, value: jnp.concatenate([jnp.full((B, P), value), x], axis=1)
    wanted = apply(
        base,
        jnp.concatenate([words, tokens], axis=1),
        segment_ids=front(segments, 1),
        token_type_ids=front(token_type_ids, 0),
        masked_positions=masked_positions + P,
    )
    actual = tuning.apply(apply)(
        merge(base, tuned),
        tokens,
        segment_ids=segments,
        token_type_ids=token_type_ids,
        masked_positions=masked_positions,
    )
    np.testing.assert_allclose(actual["masked_lm"], wanted["masked_lm"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual["hidden"][:, :4], wanted["hidden"][:, P : P + 4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual["pooled"], wanted["pooled"], rtol=1e-5, atol=1e-6)


def test_a_prompt_within_a_template_stands_where_its_token_does():
    method = Prompt(length=P, init="ids", ids=(4, 9, 2), placeholder=0)
    tuning, base, tuned, apply, tokens = begun(MODELS["gpt"], method)
    places = [0, 2, 5]
    template, words = tokens.at[:, jnp.array(places)].set(0), tokens.at[:, jnp.array(places)].set(jnp.array([4, 9, 2]))
    run = tuning.apply(apply)
    np.testing.assert_allclose(run(merge(base, tuned), template), apply(base, words), rtol=1e-5, atol=1e-6)
    too_many = template.at[:, 1].set(0)
    assert np.isnan(run(merge(base, tuned), too_many)[:, -1]).all()


@pytest.mark.parametrize("method", [Prompt(length=P, init="random"), Prefix(length=P)])
@pytest.mark.parametrize("name", ["gpt", "scanned"])
def test_a_cache_begun_with_the_prompt_goes_on_as_one_pass(method, name):
    """As in generation: the prompt once, then the text in pieces."""
    config = MODELS[name]
    tuning, base, tuned, apply, tokens = begun(config, method)
    params, run = merge(base, moved(tuned)), tuning.apply(apply)
    wanted = run(params, tokens)
    cache = tuning.begin_cache(run, params, config.init_cache(B, P + T))
    assert int(cache["offset"]) == P
    first, cache = run(params, tokens[:, :4], cache=cache)
    rest, _ = run(params, tokens[:, 4:], cache=cache)
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_prefix_of_a_texts_own_keys_and_values_is_that_text(name):
    """The keys and values of a text, as a prefix, equal the text itself; exactly so in causal models."""
    config = MODELS[name]
    tuning, base, tuned, apply, tokens = begun(config, Prefix(length=P))
    now = moved(tuned)
    run = tuning.apply(apply)
    changed = logits(run(merge(base, now), tokens))
    assert float(jnp.max(jnp.abs(changed - logits(apply(base, tokens))))) > 1e-4
    if not config.can_generate or name == "alibi":  # Alibi's distance to a prefix is 0
        return
    words = jnp.broadcast_to(jnp.array([4, 9, 2]), (B, P))
    _, cache = apply(base, words, cache=config.init_cache(B, P))
    k, v = zip(*cache["layers"], strict=True) if isinstance(cache["layers"], list) else cache["layers"]
    turned = lambda x: jnp.swapaxes(x[..., 0, :, :, :], -3, -2)  # (..., B, N, P, K) to (..., P, N, K)
    if config.scan_layers:
        own = {"blocks": {"attention": {KEY: turned(k), VALUE: turned(v)}}}
    else:
        pairs = enumerate(zip(k, v, strict=True))
        own = {f"block_{i}": {"attention": {KEY: turned(a), VALUE: turned(b)}} for i, (a, b) in pairs}
    wanted = apply(base, jnp.concatenate([words, tokens], axis=1))[:, P:]
    np.testing.assert_allclose(run(merge(base, own), tokens), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [Prefix(length=P, hidden_dim=5), PTuning(length=P, hidden_dim=5), PTuning(length=P, encoder="lstm", hidden_dim=4)],
)
@pytest.mark.parametrize("name", ["gpt", "scanned"])
def test_what_a_network_makes_is_all_that_is_left_when_tuning_is_done(method, name):
    tuning, base, tuned, apply, tokens = begun(MODELS[name], method)
    assert list(tuned) == [SHARED]
    assert tuning.counts()[0] == sum(x.size for x in jax.tree.leaves(tuned))
    run = tuning.apply(apply)
    params = merge(base, tuned)
    done = tuning.expanded(params)
    assert SHARED not in done
    np.testing.assert_allclose(run(done, tokens), run(params, tokens), rtol=1e-5, atol=1e-6)
    loss = lambda tuned: jnp.sum(jnp.square(run(merge(base, tuned), tokens)))
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(jax.grad(loss)(tuned)))


def test_an_encoder_decoder_has_prefixes_on_its_encoder_and_across():
    config = T5Config(vocab_size=V, num_layers=1, num_heads=2, embed_dim=D, head_dim=8, mlp_dim=2 * D)
    module, inputs = config.build(), tuple(jnp.ones(x.shape, x.dtype) for x in config.example_inputs(B, T))
    base = init_params(module, jax.random.key(1), *inputs)
    for targets in (("encoder/*/attention",), ("cross_attention",), ("decoder/*/attention",)):
        tuning = attach(Prefix(length=P, targets=targets), module, *inputs)
        now = moved(tuning.init(jax.random.key(2), base))
        out = tuning.apply(make_apply(module))(merge(base, now), *inputs)
        assert float(jnp.max(jnp.abs(out - make_apply(module)(base, *inputs)))) > 1e-4


@pytest.mark.parametrize("name", ["foreign", "foreign scanned"])
@pytest.mark.parametrize("placeholder", [None, 0])
def test_a_model_of_someone_elses_has_prompts_too(name, placeholder):
    module, (tokens,), base = model(name)
    words = jnp.array([4, 9, 2])
    if placeholder is None:
        inputs, wanted = tokens, jnp.concatenate([jnp.broadcast_to(words, (B, P)), tokens], axis=1)
    else:
        places = jnp.array([0, 2, 5])
        inputs, wanted = tokens.at[:, places].set(0), tokens.at[:, places].set(words)
    own = jax.jit(make_apply(module))
    tuning = attach(Prompt(length=P, init="ids", ids=(4, 9, 2), placeholder=placeholder), module, tokens)
    tuned, run = tuning.init(jax.random.key(2), base), jax.jit(tuning.apply(make_apply(module)))
    actual = run(merge(base, tuned), inputs)
    np.testing.assert_allclose(actual, own(base, wanted)[:, -T:], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run(base, wanted), own(base, wanted))
    tuning = attach(PTuning(length=P, hidden_dim=4, encoder="lstm", placeholder=placeholder), module, tokens)
    tuned, run = tuning.init(jax.random.key(2), base), tuning.apply(make_apply(module))

    @jax.jit
    def grads(tuned):
        def loss(tuned):
            out = run(merge(base, tuned), inputs)
            return jnp.sum(jnp.square(out)), out

        return jax.grad(loss, has_aux=True)(tuned)

    moves, out = grads(tuned)
    assert out.shape == (B, T, V) and float(jnp.max(jnp.abs(actual - out))) > 1e-3
    assert jax.tree.structure(moves) == jax.tree.structure(tuned)
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(moves))


class FlaxAttention(nn.Module):
    """Flax's attention, which has no call that returns its keys and values."""

    @nn.compact
    def __call__(self, tokens_BT):
        table = nn.Embed(V, D, name="embed")
        x = table(tokens_BT)
        return table.attend(nn.MultiHeadDotProductAttention(2, name="attention")(x, x))


def test_a_prefix_needs_attention_with_keys_and_values():
    with pytest.raises(
        UserError, match="targets='attention': attention .* is not attention with a `keys_values` method"
    ):
        attach(Prefix(), FlaxAttention(), jnp.ones((B, T), jnp.int32))


def test_a_text_is_the_ids_that_a_tokenizer_makes_of_it():
    text, ids = Prompt(length=5, text="\x04\t\x02"), Prompt(length=5, init="ids", ids=(4, 9, 2))
    resolved = text.resolved(ByteTokenizer(), None)
    assert resolved.ids == ids.ids and resolved.resolved(ByteTokenizer(), None) == resolved
    (_, base, tuned, _, _), (_, _, wanted, _, _) = (begun(MODELS["gpt"], method) for method in (resolved, ids))
    np.testing.assert_array_equal(tuned["embed"][PROMPT], wanted["embed"][PROMPT])
    np.testing.assert_array_equal(wanted["embed"][PROMPT], base["embed"]["embedding"][jnp.array([4, 9, 2, 4, 9])])
    with pytest.raises(FieldError, match=r"^peft.text='abcdef': has 6 tokens, and peft.length=5; use"):
        Prompt(length=5, text="abcdef").resolved(ByteTokenizer(), None)
    with pytest.raises(FieldError, match="peft.text=.*not tokenized; call .resolved"):
        begun(MODELS["gpt"], text)


def test_each_row_has_a_place_for_each_vector():
    method = PTuning(length=2, placeholder=7)
    segments = np.array([[[1, 1, 1, 1], [1, 1, 1, 0]], [[0] * 4] * 2])
    tokens = np.array([[[7, 1, 7, 2], [1, 7, 7, 7]], [[7] * 4] * 2])
    method.check_batch({"tokens": tokens[:, :1], "segment_ids": segments[:, :1]})
    for i, (row, count) in enumerate((([1, 7, 7, 7], 3), ([1, 2, 3, 4], 0))):
        tokens[0, 1] = row
        with pytest.raises(UserError, match=f"peft.placeholder=7: row 0 of a batch has this token {count} times"):
            method.check_batch({"tokens": tokens, "segment_ids": segments})
        read = {"inputs": tokens[0], "input_segments": segments[0], "tokens": tokens[0] * 0}
        with pytest.raises(UserError, match=f"row 1 .* has this token {count} times; expected peft.length=2"):
            method.check_batch({**read, "segment_ids": segments[0]})
        assert Prompt(length=i + 1).check_batch({}) is None


def test_what_cannot_work_is_told():
    config = MODELS["gpt"]
    tuning, base, tuned, apply, _ = begun(config, Prompt(length=12, init="random"))
    with pytest.raises(UserError, match="peft.length=12: with a text of 6 tokens it exceeds model.max_length=16"):
        tuning.apply(apply)(merge(base, tuned), jnp.ones((B, T), jnp.int32))
    for method, message in (
        (Prompt(length=0), "^length=0"),
        (Prompt(init="text"), "^init='text'"),
        (Prompt(init="ids"), "^ids="),
        (Prompt(length=2, init="ids", ids=(1, 2, 3)), "^length=2: ids has 3 tokens; use length=3"),
        (Prompt(text=""), "^text=''"),
        (Prompt(text="a", init="random"), "^text='a': expected a text with init='vocabulary'"),
        (PTuning(text="a"), "^text='a': the encoder computes the vectors"),
        (Prompt(ids=(1,)), "^ids="),
        (PTuning(encoder="gru"), "^encoder='gru'"),
        (PTuning(init="vocabulary"), "^init="),
        (Prefix(length=0), "^length=0"),
        (Prefix(hidden_dim=0), "^hidden_dim=0"),
    ):
        with pytest.raises(FieldError, match=message):
            method.check()
    with pytest.raises(FieldError, match="peft.ids=99: expected ids of the vocabulary"):
        begun(config, Prompt(init="ids", ids=(99,)))
    with pytest.raises(UserError, match="is not attention with a `keys_values` method"):
        begun(config, Prefix(targets=("mlp",)))
    with pytest.raises(UserError, match="is not an embedding table"):
        begun(config, dataclasses.replace(Prompt(), targets=("attention",)))
