"""A prompt and the text after it have the ids of the joined text if the tokenizer puts a space before each text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.huggingface_tokenizer import wrap
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.sampling import Sampling
from jaxnlp.inference.scoring import encode_scored, score_continuations
from jaxnlp.inference.text import generate_text
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.sharding.functional import init_params, make_apply
from tests.data import vocabularies

TOKENIZER = wrap(vocabularies.byte_fallback(fallback=False))
PROMPTS, FORCED = ["the c", "the", "c"], ["at", " the", "at"]


@functools.cache
def model(start: tuple[int, ...]):
    config = GPTConfig(vocab_size=TOKENIZER.vocab_size, max_length=32, num_layers=1, num_heads=2, embed_dim=16)
    params = init_params(config.build(), jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
    apply = make_apply(config.build())
    sizes = (config.length_limit, TOKENIZER.eos_id, TOKENIZER.vocab_size)
    return Generator(apply, config.init_cache, *sizes, decoder_start_ids=start), params, jax.jit(apply)


@pytest.mark.parametrize("start", [(1,), pytest.param((), marks=pytest.mark.slow)], ids=["start", "no start"])
def test_a_prompt_and_a_forced_beginning(start):
    generator, params, _ = model(start)
    sampling = Sampling(temperature=1.0, min_new_tokens=6)
    run = lambda **kw: generate_text(generator, TOKENIZER, params, PROMPTS, 6, sampling, forced_prefix=FORCED, **kw)
    texts, seen = run(), ["", "", ""]

    def on_text(row, text):
        seen[row] += text

    assert run(on_text=on_text) == texts and seen == [g.text for g in texts]
    for prompt, prefix, g in zip(PROMPTS, FORCED, texts, strict=True):
        (joined,) = TOKENIZER.encode_batch([prompt + prefix])
        assert g.text.startswith(prefix) and g.ids[:-6] == joined[len(joined) - len(g.ids) + 6 :]
        assert prompt + g.text == TOKENIZER.decode([*joined, *g.ids[-6:]])
    stopped = run(stop=["t"])  # those of the forced text do not count
    assert all(g.text.startswith(prefix) for g, prefix in zip(stopped, FORCED, strict=True))


def test_candidates_after_a_context():
    generator, params, apply = model((1,))
    pairs = [("the c", "at"), ("the", " cat"), ("the ", "cat"), ("", "the")]
    prompts, texts = encode_scored(generator, TOKENIZER, pairs)
    scores = score_continuations(generator, params, prompts, texts, 4)
    for (prompt, text), row, first, second in zip(pairs, scores, prompts, texts, strict=True):
        (joined,) = TOKENIZER.encode_batch([prompt + text])
        assert [*first, *second] == joined and len(row) == len(second) > 0
        log_probs = np.asarray(jax.nn.log_softmax(apply(params, jnp.asarray([[1, *joined]]))))[0]
        wanted = [log_probs[i, token] for i, token in enumerate(joined)]
        np.testing.assert_allclose(row, wanted[len(first) :], atol=1e-5)
