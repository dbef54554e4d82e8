"""Beam search against transformers and against exhaustive search."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError, UserError
from jaxnlp.inference.beam import BeamSearch, beam_search
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.exhaustive import exhaustive_search
from jaxnlp.interop.huggingface import load
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.sharding.functional import init_params, make_apply

SEP = 0
PROMPTS = [[3, 1, 4], [2], [7, 1, 8, 2, 8, 1, 8]]


def generator(config, vocab=None):
    apply = make_apply(config.build())
    return Generator(apply, config.init_cache, config.length_limit, SEP, vocab or config.vocab_size)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A random GPT-2 with a likely end-of-text token, so that texts end at different lengths."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=17,
        n_positions=80,
        n_embd=12,
        n_layer=2,
        n_head=3,
        bos_token_id=SEP,
        eos_token_id=SEP,
        pad_token_id=SEP,
        attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if parameter.ndim == 1 else 9.0 if "h." in name else 6.0)
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.transformer.wte.weight[SEP] += 0.15 * model.transformer.ln_f.bias
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    config, params, _ = load(folder)
    return torch, model, generator(config), params


def generate(torch, model, beams: BeamSearch, max_new_tokens):
    rows = [[SEP, *prompt] for prompt in PROMPTS]
    longest = max(map(len, rows))
    ids = torch.tensor([[SEP] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=mask,
            num_beams=beams.num_beams,
            num_return_sequences=beams.num_return,
            length_penalty=beams.length_penalty,
            early_stopping=beams.early_stopping,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    texts = out.sequences[:, longest:].tolist()
    texts = [text[: text.index(SEP)] if SEP in text else text for text in texts]
    scores = getattr(out, "sequences_scores", None)
    return texts, None if scores is None else scores.numpy()


EARLY, PENALTIES, WIDTHS = (False, True, "never"), (0.6, 1.0, 2.0, -0.5), (1, 2, 4, 7)
# Every pair of values of the three options occurs once; only `make test-all` runs the full product.
PAIRWISE = {(n, p, EARLY[(i + j) % 3]) for i, n in enumerate(WIDTHS[1:]) for j, p in enumerate(PENALTIES)}
PAIRWISE |= {(1, 1.0, False)}


@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "early_stopping"),
    [
        pytest.param(*case, marks=() if case in PAIRWISE else pytest.mark.full)
        for case in itertools.product(WIDTHS, PENALTIES, EARLY)
    ],
)
def test_tokens_and_scores_equal_transformers(theirs, num_beams, length_penalty, early_stopping):
    torch, model, ours, params = theirs
    for max_new_tokens in (3, 14) if num_beams == 4 else (14,):
        beams = BeamSearch(
            num_beams=num_beams, num_return=num_beams, length_penalty=length_penalty, early_stopping=early_stopping
        )
        texts, scores = generate(torch, model, beams, max_new_tokens)
        rows = beam_search(ours, params, PROMPTS, max_new_tokens, beams)
        flat = [hypothesis for row in rows for hypothesis in row]
        assert [h.ids for h in flat] == texts
        if scores is not None:  # greedy search has no scores
            np.testing.assert_allclose([h.score for h in flat], scores, rtol=1e-4, atol=1e-5)
        if num_beams > 1 and length_penalty <= 1 and max_new_tokens == 14:
            assert len({len(h.ids) for h in flat}) > 1  # texts that end, and at different lengths


@functools.cache
def tiny(kind: str):
    sizes = {"vocab_size": 5, "num_layers": 1, "num_heads": 2, "embed_dim": 8}
    config = {
        "gpt": GPTConfig(max_length=90, **sizes),
        "scanned": GPTConfig(max_length=90, scan_layers=True, **sizes),
        "llama": LlamaConfig(num_kv_heads=1, mlp_dim=12, **sizes),
    }[kind]
    params = init_params(config.build(), jax.random.key(3), jnp.zeros((1, 4), jnp.int32))
    return config, jax.tree.map(lambda x: 12 * x if x.ndim > 1 else x, params)


@pytest.mark.parametrize("kind", ["gpt", "scanned", "llama"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_enough_it_is_exhaustive_search(kind, length_penalty):
    config, params = tiny(kind)
    apply = jax.jit(make_apply(config.build()))
    beams = BeamSearch(num_beams=4**4, num_return=6, length_penalty=length_penalty, early_stopping="never")
    hypotheses = beam_search(generator(config), params, [[1, 2]], 4, beams)[0]
    wanted = exhaustive_search(
        apply, params, [SEP, 1, 2], 4, eos_id=SEP, vocab_size=5, length_penalty=length_penalty, num_return=6
    )
    assert [h.ids for h in hypotheses] == [h.ids for h in wanted]
    np.testing.assert_allclose([h.score for h in hypotheses], [h.score for h in wanted], atol=1e-5)


@pytest.mark.parametrize("length_penalty", [0.0, 2.0])
def test_no_more_texts_are_found_than_there_are(length_penalty):
    config, params = tiny("gpt")
    apply = jax.jit(make_apply(config.build()))
    beams = BeamSearch(num_beams=12, num_return=12, length_penalty=length_penalty, early_stopping="never")
    for max_new_tokens, count in ((1, 3), (2, 7)):  # of three tokens, one of which ends a text
        hypotheses = beam_search(generator(config, 3), params, [[1, 2]], max_new_tokens, beams)[0]
        wanted = exhaustive_search(
            apply,
            params,
            [SEP, 1, 2],
            max_new_tokens,
            eos_id=SEP,
            vocab_size=3,
            length_penalty=length_penalty,
            num_return=12,
        )
        assert len(hypotheses) == count and [h.ids for h in hypotheses] == [h.ids for h in wanted]
        np.testing.assert_allclose([h.score for h in hypotheses], [h.score for h in wanted], atol=1e-5)


def test_a_narrow_beam_can_miss_the_best_and_a_wider_one_never_scores_less():
    config, params = tiny("gpt")
    best = [
        beam_search(generator(config), params, [[1, 2]], 4, BeamSearch(num_beams=n, length_penalty=0.0))[0][0].score
        for n in (1, 4, 64)
    ]
    assert best[0] <= best[2] and best[1] <= best[2]


def test_one_beam_is_greedy_also_where_the_cache_grows():
    config, params = tiny("llama")
    model = generator(config)
    greedy = model(params, PROMPTS_5, 70)
    rows = beam_search(model, params, PROMPTS_5, 70, BeamSearch(num_beams=1))
    assert [row[0].ids for row in rows] == greedy


PROMPTS_5 = [[3, 1, 4], [2], [1, 1, 2, 3, 4, 1, 2]]


def test_scores_are_log_probabilities_of_the_texts():
    config, params = tiny("gpt")
    apply = make_apply(config.build())
    for h in beam_search(generator(config), params, [[1]], 20, BeamSearch(num_beams=3, num_return=3))[0]:
        whole = h.ids if len(h.ids) == 20 else [*h.ids, SEP]
        log_probs = jax.nn.log_softmax(apply(params, jnp.asarray([[SEP, 1, *whole]])))[0]
        total = sum(float(log_probs[1 + i, token]) for i, token in enumerate(whole))
        assert h.score == pytest.approx(total / len(whole), abs=1e-4)


def test_ids_of_a_padded_vocabulary_are_never_found():
    config, params = tiny("gpt")
    for h in beam_search(generator(config, 3), params, [[1]], 6, BeamSearch(num_beams=5, num_return=5))[0]:
        assert max(h.ids, default=0) < 3


@pytest.mark.parametrize("kw", [{"num_beams": 0}, {"num_return": 5}, {"early_stopping": "often"}])
def test_bad_fields_are_named(kw):
    with pytest.raises(FieldError, match=next(iter(kw))):
        BeamSearch(**kw)


def test_too_much_is_refused():
    config, params = tiny("gpt")
    with pytest.raises(UserError, match=r"max_length=90"):
        beam_search(generator(config), params, [[1]], 90)
    with pytest.raises(UserError, match="more than 1,000,000 texts"):
        exhaustive_search(lambda *_: None, params, [SEP], 30, eos_id=SEP, vocab_size=5)
