"""T5: tokens and scores of greedy and beam search equal to transformers' `generate`."""

import numpy as np
import pytest

from jaxnlp.inference.beam import BeamSearch, beam_search
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.sampling import Sampling
from jaxnlp.interop.huggingface import load
from jaxnlp.sharding.functional import make_apply

from ..reference import torch, transformers

PAD, END = 0, 1
SOURCES = [[3, 11, 4, 9], [2], [7, 5, 8, 2, 8, 12, 8]]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A random T5 whose texts end at different lengths, and ours from its checkpoint."""
    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=17,
        d_model=12,
        d_kv=5,
        d_ff=20,
        num_layers=2,
        num_heads=3,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=END,
        tie_word_embeddings=True,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative" in name:
                parameter.mul_(3.0).add_(torch.randn_like(parameter))
            elif parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "shared" not in name:
                parameter.mul_(6.0)
    folder = tmp_path_factory.mktemp("t5")
    model.save_pretrained(folder)
    config, params, _ = load(folder)
    apply = make_apply(config.build())
    ours = Generator(
        apply, config.init_cache, config.length_limit, END, 17, decoder_start_ids=(PAD,), encoder_decoder=True
    )
    return model, ours, params


def generate(theirs, max_new_tokens, prefix=(), **options):
    """Texts that transformers generates, without the decoder's start token, and their scores."""
    model, *_ = theirs
    rows = [[*source, END] for source in SOURCES]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=mask,
            decoder_input_ids=torch.tensor([[PAD, *prefix]] * len(rows)),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    texts = out.sequences[:, 1:].tolist()
    texts = [text[: text.index(END)] if END in text else text for text in texts]
    scores = getattr(out, "sequences_scores", None)
    return texts, None if scores is None else scores.numpy()


def compare(theirs, max_new_tokens, beams: BeamSearch, prefix=()):
    _, ours, params = theirs
    texts, scores = generate(
        theirs,
        max_new_tokens,
        prefix,
        num_beams=beams.num_beams,
        num_return_sequences=beams.num_return,
        length_penalty=beams.length_penalty,
        early_stopping=beams.early_stopping,
        repetition_penalty=beams.repetition_penalty,
        min_new_tokens=beams.min_new_tokens,
    )
    rows = beam_search(ours, params, SOURCES, max_new_tokens, beams, forced_prefix=[list(prefix)] * len(SOURCES))
    flat = [h for row in rows for h in row]
    assert [h.ids for h in flat] == texts
    if scores is not None:
        np.testing.assert_allclose([h.score for h in flat], scores, rtol=1e-4, atol=1e-5)
    return texts


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.6, 1.0, 2.0])
@pytest.mark.parametrize(
    "num_beams", [1, pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(7, marks=pytest.mark.slow)]
)
def test_tokens_and_scores_equal_transformers(theirs, num_beams, length_penalty, early_stopping):
    beams = BeamSearch(
        num_beams=num_beams, num_return=num_beams, length_penalty=length_penalty, early_stopping=early_stopping
    )
    texts = compare(theirs, 14, beams)
    if num_beams > 1 and length_penalty <= 1:
        assert len(set(map(len, texts))) > 1


def test_greedy_equals_transformers(theirs):
    _, ours, params = theirs
    for options in ({}, {"repetition_penalty": 1.7}, {"min_new_tokens": 6}):
        texts, _ = generate(theirs, 20, **options)
        assert ours(params, SOURCES, 20, Sampling(**options)) == texts


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.5}, {"min_new_tokens": 5}])
def test_beams_with_processors_equal_transformers(theirs, options):
    plain = compare(theirs, 12, BeamSearch(num_beams=4, num_return=4))
    assert compare(theirs, 12, BeamSearch(num_beams=4, num_return=4, **options)) != plain


def test_forced_prefix_equals_transformers(theirs):
    texts = compare(theirs, 9, BeamSearch(num_beams=3, num_return=2), prefix=(5, 9))
    assert all(text[:2] == [5, 9] for text in texts)
