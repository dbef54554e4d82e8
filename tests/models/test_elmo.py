"""ELMo equals PyTorch, each direction is causal, padding changes nothing, and every word has a vector."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.elmo import ElmoConfig, ScalarMix, features
from jaxnlp.nn.character_cnn import BEGIN_SENTENCE, END_SENTENCE, NO_WORD, NUM_CHARACTERS, PADDING, CharacterCNN, spell
from jaxnlp.nn.policy import Policy
from jaxnlp.objectives.bilm import BiLM
from jaxnlp.sharding.functional import abstract_params, init_params, make_apply
from jaxnlp.sharding.rules import REPLICATED

SIZES = {
    "vocab_size": 23,
    "max_chars": 9,
    "char_dim": 5,
    "filters": ((1, 3), (2, 4), (4, 6)),
    "num_highway": 1,
    "embed_dim": 6,
    "hidden_dim": 10,
    "dropout_rate": 0.0,
}
UNCLIPPED = {"cell_clip": None, "projection_clip": None}
SENTENCES = [["the", "cat", "sat", "on", "the", "mat", "."], ["naïve", "électricité", "猫"], ["x"]]


@functools.cache
def built(**changes):
    """A config, random parameters (gates half open, biases not zero), and the model."""
    config = ElmoConfig(**{**SIZES, **changes})
    config.check()
    shapes, _ = abstract_params(config.build(), *config.example_inputs(1, 2))
    random = np.random.default_rng(0)
    draw = lambda x: jnp.float32(random.standard_normal(x.shape) * (0.5 if len(x.shape) < 3 else 0.35))
    return config, jax.tree.map(draw, shapes), jax.jit(make_apply(config.build()))


def batch_of(config, sentences=SENTENCES, length=10):
    rows = [spell([BEGIN_SENTENCE, *words, END_SENTENCE], config.max_chars) for words in sentences]
    return np.stack([np.pad(row, ((0, length - len(row)), (0, 0))) for row in rows]), [len(row) for row in rows]


ODD = {
    "two layers": {},
    "three layers, wide output": {"num_layers": 3, "embed_dim": 14, "hidden_dim": 15, "num_highway": 3},
    "one layer, no highway": {"num_layers": 1, "num_highway": 0, "max_chars": 12, "filters": ((7, 5),), "char_dim": 3},
}


@pytest.mark.parametrize("name", ODD)
def test_layers_and_logits_equal_torch(name):
    from .elmo_torch import Elmo, torch

    config, params, apply = built(**ODD[name], **UNCLIPPED)
    tokens, lengths = batch_of(config)
    out, theirs = apply(params, tokens), Elmo(config, params)
    for b, length in enumerate(lengths):
        with torch.no_grad():
            layers, *logits = theirs(torch.from_numpy(tokens[b, :length]))
        for j, wanted in enumerate(layers.numpy()):
            np.testing.assert_allclose(out["layers"][j, b, :length], wanted, atol=2e-5 * np.abs(wanted).max(), rtol=0)
        for way, wanted in zip(("forward", "backward"), logits, strict=True):
            wanted = wanted.numpy()
            np.testing.assert_allclose(out[way][b, :length], wanted, atol=2e-5 * np.abs(wanted).max(), rtol=0)


def targets_of(rng, config, lengths, T):
    batch = {"segment_ids": (np.arange(T) < np.asarray(lengths)[:, None]).astype(np.int32)}
    for way in ("forward", "backward"):
        batch[f"{way}_targets"] = rng.integers(0, config.vocab_size, (len(lengths), T)).astype(np.int32)
        batch[f"{way}_weights"] = batch["segment_ids"] * (rng.random((len(lengths), T)) < 0.8).astype(np.float32)
    return batch


def test_loss_and_gradients_equal_torch(rng):
    from .elmo_torch import Elmo, F, torch

    config, params, apply = built(**UNCLIPPED)
    tokens, lengths = batch_of(config)
    batch = {"tokens": tokens, **targets_of(rng, config, lengths, tokens.shape[1])}
    theirs, sums = Elmo(config, params), []
    for b, length in enumerate(lengths):
        _, *logits = theirs(torch.from_numpy(tokens[b, :length]))
        for way, direction_logits in zip(("forward", "backward"), logits, strict=True):
            targets = torch.from_numpy(batch[f"{way}_targets"][b, :length]).long()
            weights = torch.from_numpy(batch[f"{way}_weights"][b, :length])
            sums.append((F.cross_entropy(direction_logits, targets, reduction="none") * weights).sum())
    wanted = sum(sums) / 2
    wanted.backward()
    loss = lambda params: BiLM().loss(apply, params, batch, None)[0]
    actual, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert float(actual) == pytest.approx(wanted.item(), rel=1e-5)
    total, P = sum(n for _, n in config.filters), config.embed_dim
    pairs = [
        (grads["softmax"]["embed"]["embedding"], theirs.softmax.weight.grad),
        (grads["words"]["characters"]["embedding"], theirs.characters.weight.grad),
        (grads["words"]["filter_2"]["kernel"].transpose(2, 1, 0), theirs.filters[2].weight.grad),
        (grads["words"]["highway_0"]["linear"]["kernel"].reshape(total, -1).T, theirs.highways[0].weight.grad),
        (grads["words"]["projection"]["kernel"].T, theirs.projection.weight.grad),
    ]
    for name, lstm in theirs.lstms.items():
        pairs += [
            (grads[name]["input"]["kernel"].reshape(P, -1).T, lstm.weight_ih_l0.grad),
            (grads[name]["hidden"].reshape(P, -1).T, lstm.weight_hh_l0.grad),
            (grads[name]["projection"].T, lstm.weight_hr_l0.grad),
            (grads[name]["bias"].reshape(-1), lstm.bias_ih_l0.grad),
        ]
    assert len(pairs) == 5 + 4 * 4
    for actual, wanted in pairs:
        np.testing.assert_allclose(actual, wanted.numpy(), atol=2e-5 * wanted.abs().max().item(), rtol=0)


def test_cells_and_outputs_stay_within_their_clips(rng):
    """Equals the recurrence in NumPy, with values that both clips change."""
    config, params, apply = built(cell_clip=0.4, projection_clip=0.2, num_layers=1)
    params = {**params, "forward_0": jax.tree.map(lambda x: 3 * x, params["forward_0"])}
    tokens, (T, *_) = batch_of(config)
    layers = np.asarray(apply(params, tokens)["layers"])[:, 0]
    p, P = jax.tree.map(np.asarray, params["forward_0"]), config.embed_dim
    h, c, bit = np.zeros(P), np.zeros(config.hidden_dim), []
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    for t in range(T):
        gates = np.tensordot(layers[0, t, :P], p["input"]["kernel"], 1) + np.tensordot(h, p["hidden"], 1) + p["bias"]
        i, f, g, o = gates
        free = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        c = np.clip(free, -0.4, 0.4)
        out = (sigmoid(o) * np.tanh(c)) @ p["projection"]
        h = np.clip(out, -0.2, 0.2)
        bit += [np.abs(free).max() > 0.4, np.abs(out).max() > 0.2]
        np.testing.assert_allclose(layers[1, t, :P], h, atol=1e-5)
    assert sum(bit) > T


@pytest.mark.parametrize(("way", "sees"), [("forward", np.less_equal), ("backward", np.greater_equal)])
def test_each_direction_sees_its_own_side_only(way, sees):
    """In every layer and in the logits, the gradient is zero at exactly the words on the other side."""
    config, params, _ = built()
    tokens, (T, *_) = batch_of(config)
    tokens, P = tokens[:1, :T], config.embed_dim
    first = 0 if way == "forward" else P
    cnn = CharacterCNN(config.char_dim, config.filters, config.num_highway, P, Policy())
    vectors = cnn.apply({"params": params["words"]}, tokens)

    def run(change):
        """The model with an offset added to each word's vector, by separate characters."""
        words = jnp.arange(T)[None, :, None] + jnp.zeros_like(tokens)
        table = jnp.zeros((NUM_CHARACTERS, P)).at[:T].set((vectors + change)[0])
        plain = ElmoConfig(**{**SIZES, "char_dim": P, "filters": ((1, P),), "num_highway": 0})
        # ReLU(max(x + 100)) - 100 is x.
        words_params = {
            "characters": {"embedding": table},
            "filter_0": {"kernel": jnp.eye(P)[None], "bias": jnp.full(P, 100.0)},
            "projection": {"kernel": jnp.eye(P), "bias": jnp.full(P, -100.0)},
        }
        fields = {"segment_ids": jnp.ones((1, T), jnp.int32)}
        out = make_apply(plain.build())({**params, "words": words_params}, words, **fields)
        states = out["layers"][:, 0, :, first : first + P].sum(-1)
        return jnp.concatenate([states, out[way][0, None, :, 3]])

    seen = np.abs(jax.jit(jax.jacobian(run))(jnp.zeros((1, T, P)))).sum((-1, 2))
    place = np.arange(T)
    np.testing.assert_array_equal(seen[0] > 0, np.eye(T, dtype=bool))
    for layer in (*range(1, config.num_layers + 1), -1):
        np.testing.assert_array_equal(seen[layer] > 0, sees(place[None], place[:, None]))


def test_padded_and_packed_sentences_equal_sentences_alone():
    config, params, apply = built()
    tokens, lengths = batch_of(config)
    tokens[:, -1] = tokens[0, 1]  # padding may have any content if segments mark it
    a, b, c = (row[None, :length] for row, length in zip(tokens, lengths, strict=True))
    segments = (np.arange(10) < np.asarray(lengths)[:, None]).astype(np.int32)
    padded = apply(params, tokens, segment_ids=segments)
    packed = apply(
        params,
        np.concatenate([b, a[:, :1], c, a], 1),
        segment_ids=np.asarray([[4] * lengths[1] + [0] + [2] * lengths[2] + [3] * lengths[0]]),
    )
    at = {0: lengths[1] + 1 + lengths[2], 1: 0, 2: lengths[1] + 1}
    for i, alone in enumerate((a, b, c)):
        wanted, n = apply(params, alone), lengths[i]
        for name, axis in (("layers", 2), ("forward", 1), ("backward", 1)):
            rows = lambda x, start, n=n, axis=axis: jnp.take(x, jnp.arange(start, start + n), axis=axis)
            row = padded[name][:, i : i + 1] if name == "layers" else padded[name][i : i + 1]
            np.testing.assert_allclose(rows(row, 0), wanted[name], atol=2e-6)
            np.testing.assert_allclose(rows(packed[name], at[i]), wanted[name], atol=2e-6)
    assert not np.asarray(padded["layers"]).transpose(1, 2, 0, 3)[segments == 0].any()
    # Without segments, positions without a word are padding.
    blank = np.where(segments[..., None] == 0, NO_WORD, tokens)
    np.testing.assert_array_equal(apply(params, blank)["layers"], padded["layers"])


@pytest.mark.parametrize(
    ("changes", "count"),
    [  # as published: 93.6M, 28.0M, 13.6M
        ({}, 93_600_864),
        ({"num_highway": 1, "embed_dim": 256, "hidden_dim": 2048}, 28_027_744),
        ({"num_highway": 1, "embed_dim": 128, "hidden_dim": 1024}, 13_593_312),
    ],
)
def test_parameter_counts_are_the_papers(changes, count):
    config = ElmoConfig(vocab_size=100, **changes)
    config.check()
    shapes, axes = abstract_params(config.build(), *config.example_inputs(1, 4))
    softmax = shapes.pop("softmax")
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count
    assert sum(x.size for x in jax.tree.leaves(softmax)) == 100 * (config.embed_dim + 1)
    names = {name for leaf in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)) for name in leaf}
    assert names <= set(REPLICATED)


def test_flops_are_counted_from_the_products():
    config = ElmoConfig(**SIZES)
    shapes, _ = abstract_params(config.build(), *config.example_inputs(1, 4))
    size = lambda tree, *names: sum(
        x.size for path, x in jax.tree_util.tree_leaves_with_path(tree) if any(n in str(path) for n in names)
    )
    filters = sum((9 - width + 1) * width * 5 * count for width, count in SIZES["filters"])
    dense = size(shapes["words"]["highway_0"], "kernel") + size(shapes["words"]["projection"], "kernel")
    lstms = sum(
        size(shapes[f"{way}_{i}"], "kernel", "hidden", "projection") for way in ("forward", "backward") for i in (0, 1)
    )
    assert config.flops_per_token(10) == 3 * 2 * (filters + dense + lstms + 2 * 23 * 6)


def test_features_do_not_cost_the_logits():
    config, params, _ = built(vocab_size=97)
    tokens, _ = batch_of(config)
    apply = make_apply(config.build())
    compiled = lambda name: jax.jit(lambda p, x: apply(p, x)[name]).lower(params, tokens).compile().as_text()
    logits = r"f32\[[\d,]*97\]"  # the vocabulary is the last axis here, the first in the table
    assert re.search(logits, compiled("forward")) and not re.search(logits, compiled("layers"))


def test_dropout_needs_a_key_and_logits_are_float32_in_bfloat16():
    config, params, _ = built(dropout_rate=0.3, policy=Policy(compute_dtype="bfloat16"))
    tokens, _ = batch_of(config)
    apply = make_apply(config.build())
    off, on, again = apply(params, tokens), *(apply(params, tokens, key=jax.random.key(0)) for _ in range(2))
    np.testing.assert_array_equal(on["forward"], again["forward"])
    assert not np.allclose(on["forward"], off["forward"], atol=1e-3)
    assert {x.dtype for x in off.values()} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(on["layers"][0], off["layers"][0])  # word vectors are taken before dropout


def test_words_are_spelled_as_allennlp_spells_them():
    row = lambda word: spell([word], 7)[0].tolist()
    assert row("ab") == [259, 98, 99, 260, 261, 261, 261]
    assert row("é") == [259, 0xC3 + 1, 0xA9 + 1, 260, 261, 261, 261]
    assert row("abcdefgh") == [259, 98, 99, 100, 101, 102, 260]  # truncated, with its markers
    assert row(b"") == [259, 260, *[PADDING] * 5] and row(BEGIN_SENTENCE)[:3] == [259, 257, 260]
    assert row("\ud800") == row("?")  # not encodable in UTF-8
    assert spell([], 7).shape == (0, 7)


def test_features_of_any_words_are_those_of_the_sentence_alone():
    config, params, apply = built()
    many = [*SENTENCES, [], ["unheard-of", "Wörter"], ["w"] * 20]
    batched = features(config, params, many, batch_size=4)
    assert [x.shape for x in batched] == [(3, len(words), 12) for words in many]
    for words, vectors in zip(many, batched, strict=True):
        tokens = spell([BEGIN_SENTENCE, *words, END_SENTENCE], config.max_chars)[None]
        np.testing.assert_allclose(vectors, apply(params, tokens)["layers"][:, 0, 1:-1], atol=2e-6)
    finance, river = features(config, params, [["the", "bank", "lends"], ["a", "river", "bank"]])
    np.testing.assert_allclose(finance[0, 1], river[0, 2], atol=2e-6)  # the same word
    assert np.abs(finance[2, 1] - river[2, 2]).max() > 0.01  # in two contexts
    assert features(config, params, []) == []


def test_calls_alike_compile_once(caplog):
    config, params, _ = built()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        compiled = lambda: sum("Finished XLA compilation of jit(" in r.getMessage() for r in caplog.records)
        first = features(config, params, SENTENCES, batch_size=5)
        assert compiled()  # the probe detects them
        caplog.clear()
        again = features(ElmoConfig(**SIZES), params, SENTENCES[::-1], batch_size=5)
        assert not compiled()
        features(ElmoConfig(**{**SIZES, "cell_clip": 1e-3}), params, SENTENCES, batch_size=5)
        assert compiled()
    np.testing.assert_array_equal(first[0], again[-1])


def test_a_config_that_changes_between_two_calls_is_seen():
    _, params, _ = built()
    config = ElmoConfig(**SIZES)
    before = features(config, params, SENTENCES)
    config.cell_clip = 1e-3
    after = features(config, params, SENTENCES)
    config.cell_clip = 3.0
    assert np.abs(before[0] - after[0]).max() > 1e-3
    np.testing.assert_array_equal(features(config, params, SENTENCES)[0], before[0])


def test_the_mix_is_equation_1(rng):
    config, params, _ = built()
    layers = features(config, params, SENTENCES)
    begins = init_params(ScalarMix(), jax.random.key(0), layers[0])
    for mixed, wanted in zip(features(config, params, SENTENCES, mix=begins), layers, strict=True):
        np.testing.assert_allclose(mixed, wanted.mean(0), atol=2e-6)
    mix = {"weights": jnp.asarray([0.3, -1.0, 2.0]), "gamma": jnp.asarray(1.7)}
    s = np.exp([0.3, -1.0, 2.0]) / np.exp([0.3, -1.0, 2.0]).sum()
    for norm in (False, True):
        for mixed, h in zip(features(config, params, SENTENCES, mix=mix, norm=norm), layers, strict=True):
            if norm:
                h = (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True)
            np.testing.assert_allclose(mixed, 1.7 * np.einsum("l,lnd->nd", s, h), atol=2e-5)
    # A task trains the mix: both of its parameters have a gradient.
    grads = jax.grad(lambda mix: jnp.sin(ScalarMix().apply({"params": mix}, layers[0])).sum())(mix)
    assert all(np.abs(g).min() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": ((10, 4),)}, "max_chars=9.*expected at least 3 and the width of the widest filter, 10"),
        ({"filters": ()}, "filters"),
        ({"filters": ((3, 0),)}, "filters"),
        ({"num_highway": -1}, "num_highway=-1"),
        ({"hidden_dim": 0}, "hidden_dim=0"),
        ({"cell_clip": 0.0}, "cell_clip=0.0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(FieldError, match=message):
        ElmoConfig(**{**SIZES, **changes}).check()


def test_words_of_another_length_are_refused():
    config, params, _ = built()
    with pytest.raises(UserError, match=r"model.max_chars=9: .*\(1, 2, 12\).*data.task.max_chars"):
        make_apply(config.build())(params, jnp.zeros((1, 2, 12), jnp.int32))
