"""Soft prompts of encoder-decoders: before the encoder's inputs, visible to the decoder and in its cache."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.inference.decode import Generator
from jaxnlp.models.t5 import T5Config
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.nn.positions import Learned
from jaxnlp.peft.method import SHARED
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt, PTuning
from jaxnlp.peft.tuning import attach
from jaxnlp.sharding.functional import init_params, make_apply
from jaxnlp.trees import merge

from .test_properties import moved

B, S, T, V, D, P = 2, 6, 4, 32, 16, 3
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "embed_dim": D,
    "mlp_dim": 24,
}
MODELS = {
    "t5": T5Config(**SIZES, head_dim=6),
    "t5 scanned": T5Config(**SIZES, head_dim=6, tie_embeddings=True, scale_logits=True, scan_layers=True, remat="full"),
    "transformer": TransformerConfig(**SIZES),
    "learned": TransformerConfig(**SIZES, positions=Learned(), max_length=S + P),
}
WORDS = (4, 9, 2)


@functools.cache
def begun(name: str, method: str = "words"):
    """(tuning, the model's function, base parameters, tuned parameters)."""
    methods = {
        "words": Prompt(length=P, init="ids", ids=WORDS),
        "mlp": PTuning(length=P, hidden_dim=5),
        "within": Prompt(length=P, init="ids", ids=WORDS, placeholder=31),
    }
    config = MODELS[name]
    module, inputs = config.build(), config.example_inputs(B, S)
    base = init_params(module, jax.random.key(1), *(jnp.ones(x.shape, x.dtype) for x in inputs))
    tuning = attach(methods[method], module, *inputs)
    return tuning, make_apply(module), base, tuning.init(jax.random.key(2), base)


def texts():
    draw = lambda seed, length: jax.random.randint(jax.random.key(seed), (B, length), 3, V - 1)
    return draw(0, S), draw(1, T), jnp.array([[1] * S, [1] * 4 + [0] * (S - 4)])


def with_words(inputs_BS, fill=None):
    front = jnp.broadcast_to(jnp.array(WORDS) if fill is None else fill, (B, P))
    return jnp.concatenate([front, inputs_BS], axis=1)


@pytest.mark.parametrize(("name", "padded"), [*((name, True) for name in MODELS), ("t5", False)])
def test_a_prompt_of_words_is_those_words_in_front_of_the_inputs(name, padded):
    tuning, apply, base, tuned = begun(name)
    inputs, tokens, segments = texts()
    extra = {"input_segments": segments} if padded else {}
    more = {"input_segments": with_words(segments, 1)} if padded else {}
    wanted = jax.jit(apply)(base, with_words(inputs), tokens, **more)
    run = jax.jit(tuning.apply(apply))
    actual = run(merge(base, tuned), inputs, tokens, **extra)
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(actual - run(base, inputs, tokens, **extra)).max() > 1e-3


def test_places_that_are_given_are_counted_on():
    tuning, apply, base, tuned = begun("transformer")
    inputs, tokens, _ = texts()
    places = jnp.broadcast_to(jnp.arange(S), (B, S))
    run = jax.jit(tuning.apply(apply))
    wanted = run(merge(base, tuned), inputs, tokens)
    actual = run(merge(base, tuned), inputs, tokens, input_positions=places)
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["t5 scanned", "learned"])
def test_generation_after_a_prompt_is_that_of_its_words(name):
    """The decoder's cache has the encoder's states of the prompt, which take no positions of the decoder."""
    tuning, apply, base, tuned = begun(name)
    config = MODELS[name]
    make = lambda apply: Generator(
        apply,
        config.init_cache,
        config.length_limit,
        1,
        V,
        decoder_start_ids=(0,),
        encoder_eos_ids=(),
        encoder_decoder=True,
    )
    sources = [[7, 5, 11], [8, 3, 20]] if name == "learned" else [[7, 5, 11], [8]]
    actual = make(tuning.apply(apply)).generate(merge(base, moved(tuned, 0.0)), sources, 5)
    wanted = make(apply).generate(base, [[*WORDS, *source] for source in sources], 5)
    assert [text.ids for text in actual] == [text.ids for text in wanted]
    np.testing.assert_allclose([t.log_probs for t in actual], [t.log_probs for t in wanted], rtol=1e-4, atol=1e-5)


def test_ptuning_and_a_prompt_within_a_template():
    tuning, apply, base, tuned = begun("t5", "mlp")
    inputs, tokens, _ = texts()
    loss = lambda tuned: jnp.sum(jnp.square(tuning.apply(apply)(merge(base, tuned), inputs, tokens)))
    grads = jax.jit(jax.grad(loss))(tuned)
    assert list(grads) == [SHARED] and all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads))
    done = tuning.expanded(merge(base, tuned))
    run = jax.jit(tuning.apply(apply))
    np.testing.assert_allclose(run(done, inputs, tokens), run(merge(base, tuned), inputs, tokens), rtol=1e-5, atol=1e-5)

    within, apply, base, tuned = begun("t5", "within")
    places = jnp.array([0, 2, 5])
    actual = jax.jit(within.apply(apply))(merge(base, tuned), inputs.at[:, places].set(31), tokens)
    wanted = jax.jit(apply)(base, inputs.at[:, places].set(jnp.array(WORDS)), tokens)
    np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


class Twice(nn.Module):
    """Reads two sequences and has no argument for padding."""

    @nn.compact
    def __call__(self, inputs_BS, tokens_BT, deterministic: bool = True):
        table = nn.Embed(V, D, name="embed")
        return table.attend(table(tokens_BT) + jnp.mean(table(inputs_BS), axis=1, keepdims=True))


class Changes(nn.Module):
    """Changes the ids before the embedding."""

    @nn.compact
    def __call__(self, inputs_BS, tokens_BT, *, input_segments=None, deterministic: bool = True):
        table = nn.Embed(V, D, name="embed")
        return table.attend(table(tokens_BT) + jnp.mean(table(inputs_BS + 0), axis=1, keepdims=True))


def test_models_in_which_a_prompt_would_stand_in_the_wrong_place_are_told():
    inputs, tokens, _ = texts()
    for kind, times in ((Twice, 2), (Changes, 0)):
        module = kind()
        base = module.init(jax.random.key(0), inputs, tokens)["params"]
        tuning = attach(Prompt(length=P), module, inputs, tokens)
        run = tuning.apply(make_apply(module))
        with pytest.raises(UserError, match=f"{kind.__name__} looks up embeddings {times} times, expected once"):
            run(merge(base, tuning.init(jax.random.key(0), base)), inputs, tokens)
    config = MODELS["t5"]
    prefix = attach(Prefix(length=P), config.build(), *config.example_inputs(B, S))
    with pytest.raises(UserError, match="generation needs one attention layer in each block"):
        prefix.begin_cache(make_apply(config.build()), begun("t5")[2], config.init_cache(B, P + T))
    tuning, apply, base, tuned = begun("learned")
    with pytest.raises(
        UserError, match=f"peft.length={P}: with a text of {S + 1} tokens it exceeds model.max_length=9"
    ):
        tuning.apply(apply)(merge(base, tuned), jnp.ones((B, S + 1), jnp.int32), tokens)
