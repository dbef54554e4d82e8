"""Generated text: a chunked loop equals the full loop, stop strings, log-probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.errors import UserError
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.sampling import Sampling
from jaxnlp.inference.text import generate_text
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.sharding.functional import init_params, make_apply

TOKENIZER = ByteTokenizer()
TEXTS = ["one", "", "several more"]
DRAW = Sampling(temperature=1.0, top_k=40, repetition_penalty=1.1)


@functools.cache
def model(**fields):
    config = GPTConfig(vocab_size=264, max_length=120, num_layers=1, num_heads=2, embed_dim=16)
    params = init_params(config.build(), jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
    params = jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, params)
    apply = make_apply(config.build())
    generator = Generator(apply, config.init_cache, config.length_limit, 256, 257, **fields)
    return generator, params, jax.jit(apply)


def test_log_probabilities_are_the_models_own_whatever_the_draw():
    generator, params, apply = model()
    prompts, prefixes = TOKENIZER.encode_batch(TEXTS), [[65], [], [66, 67]]
    for g, prompt, prefix in zip(
        generator.generate(params, prompts, 60, DRAW, forced_prefix=prefixes), prompts, prefixes, strict=True
    ):
        row = np.full((1, 120), 256)
        whole = [256, *prompt, *g.ids, *([256] if g.finish == "end" else [])]
        row[0, : len(whole)] = whole
        logits = np.asarray(apply(params, jnp.asarray(row)))[0, : len(whole) - 1, :257]  # the vocabulary is padded
        wanted = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(whole)[1:, None], 1)[:, 0]
        wanted = wanted[len(prompt) :]
        assert g.ids[: len(prefix)] == prefix and len(g.log_probs) == len(g.ids)
        np.testing.assert_allclose(g.log_probs, wanted[: len(g.ids)], atol=1e-5)
        assert (g.end_log_prob is None) == (g.finish == "length")
        assert g.score == pytest.approx(wanted.sum(), abs=1e-3)


def test_chunks_give_what_the_whole_loop_does():
    generator, params, _ = model()
    prompts, prefixes = TOKENIZER.encode_batch(TEXTS), [[65], [], [66, 67]]
    wanted = generator.generate(params, prompts, 80, DRAW, 3, forced_prefix=prefixes)  # the cache grows once
    for chunk in (7, 1000):
        rows = [[], [], []]
        actual = generator.generate(
            params,
            prompts,
            80,
            DRAW,
            3,
            forced_prefix=prefixes,
            on_tokens=lambda i, new, rows=rows: rows[i].extend(new),
            chunk=chunk,
        )
        assert rows == [g.ids for g in wanted] == [g.ids for g in actual]
        assert [g.finish for g in actual] == [g.finish for g in wanted]
        for a, b in zip(actual, wanted, strict=True):
            np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-6)


def test_a_row_ends_where_it_is_told_to_and_the_others_go_on():
    generator, params, _ = model()
    prompts, calls = TOKENIZER.encode_batch(TEXTS), []
    wanted = generator.generate(params, prompts, 80, DRAW, 3)

    def on_tokens(row, new):
        calls.append(row)
        return row == 1

    generated = generator.generate(params, prompts, 80, DRAW, 3, on_tokens=on_tokens, chunk=7)
    assert calls.count(1) == 1 < calls.count(0)
    assert generated[1].finish == "stop" and generated[1].ids == wanted[1].ids[:1]  # seen after the first token
    assert [generated[i].ids for i in (0, 2)] == [wanted[i].ids for i in (0, 2)]
    with pytest.raises(UserError, match="chunk=0"):
        generator.generate(params, prompts, 5, on_tokens=on_tokens, chunk=0)


def test_stop_strings_and_streams_of_text():
    generator, params, _ = model()
    text = lambda **kw: generate_text(generator, TOKENIZER, params, TEXTS, 80, DRAW, 3, chunk=7, **kw)
    plain = text()
    assert [g.text for g in plain] == [TOKENIZER.decode(g.ids) for g in plain]
    at = len(plain[0].text) // 2
    stop = [plain[0].text[at : at + 2], "never there"]
    streams = ["", "", ""]

    def on_text(row, new):
        assert new
        streams[row] += new

    for g, before, stream in zip(text(stop=stop, on_text=on_text), plain, streams, strict=True):
        at = before.text.find(stop[0])
        assert g.text == stream == (before.text if at < 0 else before.text[:at])
        assert g.ids == before.ids[: len(g.ids)] and g.log_probs == pytest.approx(before.log_probs[: len(g.ids)])
        if at >= 0:
            assert g.finish == "stop" and g.end_log_prob is None
            assert TOKENIZER.decode(g.ids).endswith(stop[0]) and stop[0] not in TOKENIZER.decode(g.ids[:-1])
        else:
            assert g == before
    assert plain[0].text.startswith(streams[0]) and streams[0] != plain[0].text
    forced = text(stop=["!"], forced_prefix="wait!")
    assert all(g.text.startswith("wait!") and "!" not in g.text[5:] for g in forced)
    with pytest.raises(UserError, match="forced_prefix: 1 prefixes for 3 prompts"):
        text(forced_prefix=["a"])


def test_a_text_need_not_begin_with_the_separator():
    generator, params, _ = model(decoder_start_ids=())
    _, _, apply = model()
    row = np.full((1, 120), 256)
    row[0, :3] = [10, 20, 30]
    logits = np.asarray(apply(params, jnp.asarray(row)))[0]
    assert generator(params, [[10, 20, 30]], 1)[0] == [int(np.argmax(logits[2, :257]))]
    assert generator.fit_max_new_tokens([[10, 20, 30]], 200) == 117
    with pytest.raises(UserError, match="empty prompt; the model has no start token"):
        generator(params, [[]], 3)
    two, _, _ = model(decoder_start_ids=(256, 9))
    with pytest.raises(UserError, match="3 prompt tokens, 2 start tokens and max_new_tokens=116"):
        two(params, [[1, 2, 3]], 116)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=1.5, min_p=0.1), Sampling(temperature=1.0, top_k=5, top_p=0.9, repetition_penalty=1.5)],
)
def test_texts_follow_the_models_filtered_distribution(sampling):
    """Two tokens sampled by the full engine follow the model's joint distribution, filtered by hand."""
    V, count = 7, 6000
    config = GPTConfig(vocab_size=V + 1, max_length=16, num_layers=1, num_heads=2, embed_dim=8)
    params = init_params(config.build(), jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
    params = jax.tree.map(lambda x: 6 * x if x.ndim > 1 else x, params)
    apply = make_apply(config.build())
    generator = Generator(apply, config.init_cache, config.length_limit, 0, V)  # 0 ends a text, 7 is padding
    rows = generator(params, [[3, 5]] * count, 2, sampling)
    observed = np.zeros((V, V))
    for row in rows:
        first, second = (*row, 0, 0)[:2]
        observed[first, second] += 1
    wanted = np.zeros((V, V))
    for first, p in enumerate(probabilities(apply, params, [0, 3, 5], V, sampling)):
        then = [1.0] if first == 0 else probabilities(apply, params, [0, 3, 5, first], V, sampling)
        wanted[first, : len(then)] = p * np.asarray(then)
    assert observed[wanted == 0].sum() == 0
    large = count * wanted > 5  # cells large enough for the test
    rest, rest_observed = count - count * wanted[large].sum(), count - observed[large].sum()
    chi_square = ((observed[large] - count * wanted[large]) ** 2 / (count * wanted[large])).sum()
    chi_square += (rest_observed - rest) ** 2 / max(rest, 1.0)
    freedom = large.sum()
    assert freedom > 5 and chi_square < freedom + 5 * (2 * freedom) ** 0.5


def probabilities(apply, params, row, V, sampling):
    """Probabilities of the next token, from the definitions."""
    z = np.asarray(apply(params, jnp.asarray([row])), np.float64)[0, -1, :V]
    seen = np.isin(np.arange(V), row)
    z = np.where(seen, np.where(z < 0, z * sampling.repetition_penalty, z / sampling.repetition_penalty), z)
    p = np.exp(z / sampling.temperature)
    p /= p.sum()
    order = np.argsort(-p)
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
        p /= p.sum()
    p[order[np.cumsum(p[order]) - p[order] >= sampling.top_p]] = 0
    p /= p.sum()
    p[p < sampling.min_p * p.max()] = 0
    return p / p.sum()


def test_a_raw_tokenizer_is_refused_with_the_way_to_wrap_it():
    import tokenizers

    generator, params, _ = model()
    raw = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    with pytest.raises(UserError, match=r"encode_batch returns a list of Encoding; expected lists of ids; wrap it"):
        generate_text(generator, raw, params, ["a"], 3)
