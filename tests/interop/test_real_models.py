"""Pretrained checkpoints that packages carry: each is imported, generates and scores as transformers does.

A test needs its package (`real_models.py`) and is skipped without it. One at a time:
`python -m pytest -m "slow or full" tests/interop/test_real_models.py`.
"""

import numpy as np
import pytest

import jaxnlp
from jaxnlp.data.huggingface_tokenizer import wrap
from tests.entry import run

from ..reference import torch, transformers
from . import real_models

NEW = 16
PROMPTS = {
    "glassllm": (["Once upon a time there was a little", "“I am not sure,” said the", "The"], " very happy"),
    "smollm2": (["The capital of France is", "def fibonacci(n):\n"], " Paris, and 2 + 3 = 5"),
    "flan_t5": (
        [
            "Translate English to German: The house is wonderful and the garden is small.",
            "What is </s> here? <pad> Ж",
        ],
        "Das Haus ist klein",
    ),
}


def theirs(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    return model, bool(config.is_encoder_decoder)


def greedy(model, encoder_decoder, ids):
    """transformers' new tokens, without the end of the text."""
    ends = model.generation_config.eos_token_id
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False)[0].tolist()
    new = out[1:] if encoder_decoder else out[len(ids) :]
    return [i for i in new if i not in np.ravel(ends)]


def score(model, encoder_decoder, ids, continuation):
    with torch.no_grad():
        if encoder_decoder:
            start = model.config.decoder_start_token_id
            written = torch.tensor([[start, *continuation[:-1]]])
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=written).logits[0]
        else:
            logits = model(torch.tensor([ids + continuation])).logits[0, len(ids) - 1 : -1]
    return logits.log_softmax(-1)[range(len(continuation)), continuation].sum().item()


def check(folder, prompts, continuation, source=None):
    """Compares the model of `source`, a run or the folder itself, with transformers' of the folder."""
    model, (reference, encoder_decoder) = jaxnlp.load(source or folder), theirs(folder)
    tokenizer = wrap(transformers.AutoTokenizer.from_pretrained(folder)._tokenizer, None)
    end = [tokenizer.eos_id] if encoder_decoder else []
    continuation_ids = tokenizer.encode_batch([continuation])[0]
    for prompt in prompts:
        ids = tokenizer.encode_batch([prompt])[0] + end
        wanted = tokenizer.decode(greedy(reference, encoder_decoder, ids))
        assert model.generate(prompt, max_new_tokens=NEW, temperature=0.0) == wanted, prompt
        wanted = score(reference, encoder_decoder, ids, continuation_ids)
        assert model.score([prompt], [continuation])[0] == pytest.approx(wanted, rel=1e-5), prompt


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The folder of a model by its name in `real_models`, written once."""
    folders = {}

    def get(name):
        if name not in folders:
            folders[name] = getattr(real_models, name)(tmp_path_factory.mktemp("real") / name)
        return folders[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glassllm", pytest.param("smollm2", marks=pytest.mark.full), "flan_t5"])
def test_a_language_model_generates_and_scores_as_transformers_does(name, converted):
    check(converted(name), *PROMPTS[name])


@pytest.mark.full
def test_a_t5_is_imported_as_a_run(converted, tmp_path):
    folder = converted("flan_t5")
    done = run("experiments.import", f"--source={folder}", f"--workdir={tmp_path}")
    assert done.code == 0 and "T5Config, 76,961,152 parameters" in done.out, done.err
    check(folder, *PROMPTS["flan_t5"], source=tmp_path)


def test_the_special_tokens_of_a_t5_are_those_of_its_file():
    folder = real_models.files_of("traceforge_title_model") / "data" / "span"
    library = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer = wrap(library._tokenizer)
    ids = {"</s>": 1, "<pad>": 0, "<unk>": 2, "<extra_id_0>": 32099, "<extra_id_99>": 32000}
    for name, i in ids.items():
        assert tokenizer.special_id(name) == library.convert_tokens_to_ids(name) == i
    for text in (
        "Translate English to German: The house is wonderful.",
        "a\tb  c\n",
        "Ж 漢 é ﬁ",
        "</ s>",
        "<extra id>",
    ):
        assert tokenizer.encode_batch([text])[0] == library(text, add_special_tokens=False).input_ids, text
    fullwidth = "\uff1c/s\uff1e"  # normalised to </s>
    ids = tokenizer.encode_batch([f"a </s> b {fullwidth} <pad><extra_id_0><extra_id_42>"])[0]
    assert not {0, 1, *range(32000, 32100)} & {*ids}


def test_a_bert_with_older_names_fills_masks_as_transformers_does():
    folder = real_models.splade()
    model = jaxnlp.load(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    text = "the capital of france is [MASK]."
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        wanted = reference(**ids).logits[0].softmax(-1)
    at = ids.input_ids[0].tolist().index(tokenizer.mask_token_id)
    probabilities, tokens = wanted[at].topk(5)
    guesses = model.fill_mask(text)[0]
    assert [guess.token for guess in guesses] == tokens.tolist()
    np.testing.assert_allclose([guess.probability for guess in guesses], probabilities, rtol=1e-4)
