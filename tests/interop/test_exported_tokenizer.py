"""Exports of runs whose tokenizer has no tokenizer.json include the tokenizer; the loaded model is the same."""

import dataclasses

import numpy as np
import pytest
import tokenizers

import jaxnlp
from jaxnlp.data.huggingface_tokenizer import wrap
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.pretrained_tokenizer import FILE, PretrainedTokenizer
from jaxnlp.data.text.sentinels import sentinels
from jaxnlp.data.text.sources import Files
from jaxnlp.data.text.span_corruption import SpanCorruption
from jaxnlp.data.tokenizer import Bytes, SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.models.t5 import T5Config
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init.pretrained import open_source
from jaxnlp.training.load import Loaded
from jaxnlp.training.run_folder.checkpoint import Saved

SPECIAL = ("<start>", *sentinels(8))
CASES = {
    "bytes, decoder": (Bytes(special_tokens=("[X]",)), LlamaConfig(num_heads=2, embed_dim=16, mlp_dim=16)),
    "sentencepiece, decoder": (SentencePiece(vocab_size=300), GPTConfig(num_heads=2, embed_dim=16, max_length=32)),
    "bytes, encoder-decoder": (Bytes(special_tokens=SPECIAL), T5Config(num_heads=2, embed_dim=16, mlp_dim=16)),
    "sentencepiece, encoder-decoder": (
        SentencePiece(vocab_size=300, special_tokens=SPECIAL),
        T5Config(num_heads=2, embed_dim=16, mlp_dim=16),
    ),
}


def untrained(corpus, name: str) -> jaxnlp.Model:
    """A loaded model with initial parameters."""
    tokenizer, model = CASES[name]
    files = Files(train=f"{corpus}/train.txt", validation=f"{corpus}/validation.txt", document="paragraph")
    e = Experiment(
        model=dataclasses.replace(model, num_layers=1),
        data=DataConfig(source=files, tokenizer=tokenizer, seq_len=16, batch_size=8, prefetch_threads=0),
    )
    if model.kind == "encoder-decoder":
        e.data.task, e.objective = SpanCorruption(decoder_start_token="<start>"), Seq2Seq()
    e, tokenizer = jaxnlp.prepare(e)
    program = jaxnlp.build(e)
    return jaxnlp.Model(Loaded(Saved(0, e, tokenizer, {}, {}), program, program.init().all_params), "run")


@pytest.mark.parametrize("name", CASES)
def test_an_export_is_loaded_with_its_tokenizer(corpus, tmp_path, name):
    model = untrained(corpus, name)
    model.save(tmp_path)
    again, text = jaxnlp.load(tmp_path), "def é main"
    ids = model.tokenizer.encode_batch([text])
    assert again.tokenizer.to_json() == model.tokenizer.to_json() and again.tokenizer.encode_batch([text]) == ids
    inputs = [np.asarray(ids)] * (2 if model.config.kind == "encoder-decoder" else 1)
    np.testing.assert_array_equal(again.apply(again.params, *inputs), model.apply(model.params, *inputs))
    generations = [m.generations([text, "x"], 5) for m in (model, again)]
    assert generations[0] == generations[1] and generations[0][0].ids
    scores = [m.score([text], [" x"]) for m in (model, again)]
    assert scores[0] == scores[1]
    source = open_source(str(tmp_path), "latest", print)
    assert source.tokenizer is not None and source.tokenizer.to_json() == model.tokenizer.to_json()
    assert PretrainedTokenizer(path=str(tmp_path)).build(list, tmp_path).to_json() == model.tokenizer.to_json()


def test_an_export_replaces_the_tokenizer_of_an_earlier_one(corpus, tmp_path):
    model = untrained(corpus, "bytes, decoder")
    (tmp_path / "tokenizer.json").write_text("of another model")
    model.save(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    assert jaxnlp.load(tmp_path).tokenizer.to_json() == model.tokenizer.to_json()
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]"))
    library.add_special_tokens(["<|endoftext|>"])
    saved = dataclasses.replace(model.loaded.saved, tokenizer=wrap(library))
    model.save(tmp_path / "other")
    jaxnlp.Model(dataclasses.replace(model.loaded, saved=saved), "run").save(tmp_path / "other")
    assert (tmp_path / "other" / "tokenizer.json").exists() and not (tmp_path / "other" / FILE).exists()
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match=f"{FILE}: damaged"):
        jaxnlp.load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(UserError, match=f"has no tokenizer; expected tokenizer.json, {FILE}, or vocab.json"):
        jaxnlp.load(tmp_path)
