"""Logits processors equal those of transformers, alone and in `generate`."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError
from jaxnlp.inference.beam import BeamSearch, beam_search
from jaxnlp.inference.processors import Processors, process, seen_in
from jaxnlp.inference.sampling import Sampling, filtered

from ..reference import torch, transformers
from .test_beam import PROMPTS, SEP, theirs  # noqa: F401

T = transformers.generation.logits_process
V = 23


@pytest.fixture
def logits(rng):
    return (3 * rng.standard_normal((6, V))).astype(np.float32)


def test_repetition_penalty(logits, rng):
    tokens = rng.integers(0, V, (6, 9))
    for penalty in (0.8, 1.3, 2.0):
        wanted = T.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(tokens), torch.tensor(logits)).numpy()
        seen = seen_in(jnp.asarray(tokens), jnp.ones(tokens.shape, bool), V)
        actual = process(jnp.asarray(logits), Processors(repetition_penalty=penalty), (0,), 3, seen)
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)
    padding = np.array([0, 2, 5, 1, 8, 3])  # excluded in transformers too
    wanted = T.RepetitionPenaltyLogitsProcessor(2.0, prompt_ignore_length=torch.tensor(padding))
    real = np.arange(9) >= padding[:, None]
    actual = process(
        jnp.asarray(logits), Processors(repetition_penalty=2.0), (0,), 3, seen_in(jnp.asarray(tokens), real, V)
    )
    np.testing.assert_allclose(actual, wanted(torch.tensor(tokens), torch.tensor(logits)), rtol=1e-6)


@pytest.mark.parametrize("step", [0, 3, 4])
def test_min_new_tokens(logits, step):
    reference = T.MinNewTokensLengthLogitsProcessor(5, 4, SEP)
    wanted = reference(torch.zeros((6, 5 + step), dtype=torch.long), torch.tensor(logits))
    actual = process(jnp.asarray(logits), Processors(min_new_tokens=4), (SEP,), step, None)
    np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize(
    "fields",
    [
        {"min_p": 0.05},
        {"min_p": 0.3},
        {"min_p": 1.0},
        {"temperature": 0.6, "min_p": 0.1},
        {"top_k": 7},
        {"temperature": 1.7, "top_k": 9, "top_p": 0.7, "min_p": 0.2},
    ],
)
def test_filters(logits, fields):
    sampling = Sampling(**{"temperature": 1.0, **fields})
    wanted = T.TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(logits))
    if sampling.top_k:
        wanted = T.TopKLogitsWarper(sampling.top_k)(None, wanted)
    if sampling.top_p < 1:
        wanted = T.TopPLogitsWarper(sampling.top_p)(None, wanted)
    if sampling.min_p:
        wanted = T.MinPLogitsWarper(sampling.min_p)(None, wanted)
    actual = np.asarray(filtered(jnp.asarray(logits), sampling))
    np.testing.assert_allclose(actual, wanted, rtol=1e-6)
    assert (np.isfinite(actual).sum(1) < V).all()


OPTIONS = [
    {"repetition_penalty": 1.6},
    {"min_new_tokens": 6},
    {"repetition_penalty": 1.3, "min_new_tokens": 4},
]


def generate(torch, model, max_new_tokens, **options):
    rows = [[SEP, *prompt] for prompt in PROMPTS]
    longest = max(map(len, rows))
    ids = torch.tensor([[SEP] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    kw = {"max_new_tokens": max_new_tokens, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, **kw, **options)
    texts = out.sequences[:, longest:].tolist()
    return [text[: text.index(SEP)] if SEP in text else text for text in texts], getattr(out, "sequences_scores", None)


@pytest.mark.parametrize("options", OPTIONS)
def test_greedy_equals_transformers(theirs, options):  # noqa: F811
    torch, model, ours, params = theirs
    wanted, _ = generate(torch, model, 14, **options)
    assert ours(params, PROMPTS, 14, Sampling(**options)) == wanted
    assert ours(params, PROMPTS, 14) != wanted


@pytest.mark.parametrize(("num_beams", "options"), [(2, OPTIONS[0]), (4, OPTIONS[2])])
def test_beams_equal_transformers(theirs, options, num_beams):  # noqa: F811
    torch, model, ours, params = theirs
    wanted, scores = generate(torch, model, 14, num_beams=num_beams, num_return_sequences=num_beams, **options)
    beams = BeamSearch(num_beams=num_beams, num_return=num_beams, **options)
    flat = [h for row in beam_search(ours, params, PROMPTS, 14, beams) for h in row]
    assert [h.ids for h in flat] == wanted
    np.testing.assert_allclose([h.score for h in flat], scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [{"repetition_penalty": 0.0}, {"min_new_tokens": -1}])
def test_bad_fields_are_named(fields):
    for kind in (Sampling, BeamSearch):
        with pytest.raises(FieldError, match=next(iter(fields))):
            kind(**fields)
    with pytest.raises(FieldError, match="min_p=1.5"):
        Sampling(min_p=1.5)


def test_a_drawn_text_does_not_end_too_early(theirs):  # noqa: F811
    _, _, ours, params = theirs
    sampling = Sampling(temperature=2.0, min_new_tokens=5)
    lengths = [len(ids) for ids in ours(params, [[1]] * 200, 9, sampling)]
    assert min(lengths) == 5 and len(set(lengths)) > 2
