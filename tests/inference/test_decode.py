"""Generation: the cached loop equals recomputing from scratch, and draws follow their distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.inference.cache import cache_lengths
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.sampling import Sampling, filtered, sample
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn import norms, positions
from jaxnlp.sharding.functional import init_params, make_apply

SEP, TOKENS = 30, 31  # the vocabulary is padded to 40
PROMPTS = [[1, 2, 3], [], [7, 8, 9, 10, 11, 12, 13], [5]]


@functools.cache
def model(name: str):
    extra = {
        "gpt2": {},
        "scanned rotary": {
            "positions": positions.Rotary(),
            "scan_layers": True,
            "num_kv_heads": 2,
            "norm": norms.RMSNorm(),
        },
    }
    config = GPTConfig(vocab_size=40, max_length=96, num_layers=2, num_heads=4, embed_dim=32, **extra[name])
    params = init_params(config.build(), jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
    params = jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params)
    apply = make_apply(config.build())
    return Generator(apply, config.init_cache, config.length_limit, SEP, TOKENS), params, jax.jit(apply)


def from_scratch(apply, params, prompt, count):
    """Greedy decoding that recomputes the full text for each token."""
    row = [SEP, *prompt]
    for _ in range(count):
        padded = np.full((1, 96), SEP)
        padded[0, : len(row)] = row
        token = int(np.argmax(np.asarray(apply(params, jnp.asarray(padded)))[0, len(row) - 1, :TOKENS]))
        if token == SEP:
            break
        row.append(token)
    return row[1 + len(prompt) :]


@pytest.mark.parametrize("name", ["gpt2", "scanned rotary"])
def test_greedy_with_a_cache_equals_from_scratch_for_ragged_prompts(name):
    generator, params, apply = model(name)
    outputs = generator(params, PROMPTS, 80)  # the cache grows once
    for prompt, ids in zip(PROMPTS, outputs, strict=True):
        assert ids == from_scratch(apply, params, prompt, 80)


def test_a_text_ends_at_the_separator():
    generator, params, _ = model("gpt2")
    favoured = {**params, "embed": {"embedding": params["embed"]["embedding"].at[SEP].mul(6.0)}}
    lengths = [len(ids) for ids in generator(favoured, PROMPTS * 4, 60, Sampling(temperature=1.0))]
    assert min(lengths) < 60 and all(SEP not in ids for ids in generator(favoured, PROMPTS, 60))


def test_ids_of_a_padded_vocabulary_are_never_generated():
    generator, params, _ = model("gpt2")
    favoured = {**params, "embed": {"embedding": params["embed"]["embedding"].at[TOKENS:].mul(50.0)}}
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        assert max(max(ids, default=0) for ids in generator(favoured, PROMPTS, 30, sampling)) < TOKENS


def test_seeds_decide_and_rows_differ():
    generator, params, _ = model("gpt2")
    draw = lambda seed: generator(params, [[1, 2]] * 3, 30, Sampling(temperature=1.0), seed)
    assert draw(0) == draw(0) != draw(1)
    assert draw(0)[0] != draw(0)[1]


def test_more_positions_than_the_model_has():
    generator, params, _ = model("gpt2")
    with pytest.raises(
        UserError, match="3 prompt tokens, one end-of-text token and max_new_tokens=100 exceed model.max_length=96"
    ):
        generator(params, [[1, 2, 3]], 100)
    rotary, params, _ = model("scanned rotary")
    assert len(rotary(params, [[1]], 120)[0]) <= 120
    with pytest.raises(UserError, match="0 prompts"):
        generator(params, [], 5)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=4),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=1.0, top_k=6, top_p=0.6),
    ],
)
def test_draws_follow_the_filtered_distribution(sampling, rng):
    logits = jnp.asarray(rng.standard_normal(9) * 2, jnp.float32)
    count = 20_000
    draws = np.asarray(sample(jnp.broadcast_to(logits, (count, 9)), jax.random.key(0), sampling))
    # The same filters written out on probabilities.
    p = np.exp(np.asarray(logits, np.float64) / sampling.temperature)
    p /= p.sum()
    order = np.argsort(-p)
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
        p /= p.sum()
    reached = np.cumsum(p[order]) - p[order]
    p[order[reached >= sampling.top_p]] = 0
    p /= p.sum()
    counts = np.bincount(draws, minlength=9)
    assert (counts[p == 0] == 0).all()
    possible = p > 0
    chi_square = ((counts[possible] - count * p[possible]) ** 2 / (count * p[possible])).sum()
    assert chi_square < 30  # 8 degrees of freedom at most: p < 0.0003 by chance


def test_filters_keep_at_least_one_token():
    logits = jnp.asarray([[0.0, 5.0, 1.0]])
    out = filtered(logits, Sampling(temperature=1.0, top_p=1e-6))
    np.testing.assert_array_equal(np.isfinite(out), [[False, True, False]])


@pytest.mark.parametrize("temperature", [1e-6, 1e-20, 1e-38, 1e-42, 5e-324])
@pytest.mark.parametrize("filters", [{}, {"top_k": 2, "top_p": 0.9, "min_p": 0.1}])
def test_a_temperature_so_small_that_logits_overflow_is_greedy(temperature, filters):
    logits = jnp.asarray([[-3e4, 20.0, 21.0, -jnp.inf], [-9.0, -8.0, -1e30, -8.001], [1e30, 0.0, 2e30, 1.5e30]])
    drawn = sample(logits, jax.random.key(1), Sampling(temperature=temperature, **filters))
    np.testing.assert_array_equal(drawn, sample(logits, jax.random.key(1), Sampling(temperature=0.0)))
    assert not np.isnan(np.asarray(filtered(logits, Sampling(temperature=temperature, **filters)))).any()


@pytest.mark.parametrize("filters", [{}, {"top_k": 2, "top_p": 0.9, "min_p": 0.1}])
def test_large_logits_do_not_overflow_at_any_temperature(filters):
    row = [1.0, 5.0, 4.9999, -3.0]
    logits = jnp.asarray([row, [x - 20 for x in row], [1.0, 5.0, -jnp.inf, -3.0]]) * 1e34
    drawn = sample(logits, jax.random.key(1), Sampling(temperature=1e-5, **filters))
    np.testing.assert_array_equal(drawn, [1, 1, 1])
    ordinary = jax.random.normal(jax.random.key(2), (8, 50))  # the same bits as without a shift
    np.testing.assert_array_equal(filtered(ordinary, Sampling(temperature=0.7)), ordinary / 0.7)


def test_bad_sampling():
    for fields, message in (
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
    ):
        with pytest.raises(UserError, match=message):
            Sampling(**fields)


def test_the_cache_doubles():
    assert cache_lengths(5, 40) == [40]
    assert cache_lengths(5, 200) == [64, 128, 200]
    assert cache_lengths(64, 200) == [128, 200]
