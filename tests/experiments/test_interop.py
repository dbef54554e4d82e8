"""Import and export from the command line: a round trip gives the same model, which can be trained further."""

import json
import re

import jax
import numpy as np
import pytest
import tokenizers

from jaxnlp.data.text.sentinels import sentinels
from jaxnlp.interop.huggingface import load, save
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.t5 import t5_v1_0
from jaxnlp.sharding.functional import init_params
from tests.entry import ROOT, run

SMALL = ROOT / "tests" / "experiments" / "small.py"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2, "line": 3}, "<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(["<|endoftext|>"])
    write(folder, GPTConfig(max_length=32, num_layers=1, num_heads=2, embed_dim=8, vocab_size=5), model)
    return folder


def write(folder, config, tokenizer=None):
    params = init_params(config.build(), jax.random.key(0), np.zeros((1, 4), np.int32))
    save(folder, config, params, tokenizer)


def test_there_and_back_is_the_same_and_it_trains_on(theirs, corpus, tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "out"
    done = run("experiments.import", f"--source={theirs}", f"--workdir={workdir}", f"--config={SMALL}:{corpus}")
    assert done.code == 0, done.err
    assert "GPTConfig" in done.out and "as step 0" in done.out and "experiments.generate" in done.out
    done = run("experiments.export", f"--workdir={workdir}", f"--out={out}")
    assert done.code == 0, done.err
    assert "step 0 written" in done.out and "tokenizer.json" in done.out
    (config, params, tokenizer), (config_2, params_2, tokenizer_2) = load(theirs), load(out)
    assert config == config_2 and tokenizer.to_str() == tokenizer_2.to_str()
    jax.tree.map(np.testing.assert_array_equal, params, params_2)

    done = run("experiments.generate", f"--workdir={workdir}", "--prompt=a b", "--max_new_tokens=4")
    assert done.code == 0 and "a b" in done.out, done.err
    beams = run("experiments.generate", f"--workdir={workdir}", "--prompt=a", "--num_beams=3", "--num_samples=2")
    assert beams.code == 0 and "--- 2 of 2, score -" in beams.out, beams.err
    beams = run("experiments.generate", f"--workdir={workdir}", "--num_beams=2", "--num_samples=3")
    assert beams.code == 2 and "--num_samples=3: expected at most --num_beams=2" in beams.err
    done = run("experiments.train", f"--workdir={workdir}", "--config.num_steps=4")
    assert done.code == 0, done.err
    assert "resuming at step 0 of 4" in done.err and re.search(r"checkpoints/4\b", done.out)
    fresh = run("experiments.train", f"--config_json={workdir}/config.json", f"--workdir={tmp_path}/fresh", "--dry_run")
    assert fresh.code == 0 and "parameters:" in fresh.out, fresh.err
    again = run("experiments.import", f"--source={theirs}", f"--workdir={workdir}", f"--config={SMALL}:{corpus}")
    assert again.code == 2 and "already holds a run" in again.err


def test_a_t5_comes_and_goes_and_trains_on(corpus, tmp_path):
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "def": 3, "return": 4, "self": 5}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(["<pad>", "</s>", *sentinels(30)])
    config = t5_v1_0(vocab_size=40, num_layers=1, num_heads=2, embed_dim=8, head_dim=4, mlp_dim=12)
    source, workdir, out = tmp_path / "t5", tmp_path / "run", tmp_path / "out"
    params = init_params(config.build(), jax.random.key(0), *(np.zeros((1, 4), np.int32),) * 2)
    save(source, config, params, model)
    done = run("experiments.import", f"--source={source}", f"--workdir={workdir}")
    assert done.code == 0 and "T5Config" in done.out, done.err
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["data"]["task"]["decoder_start_token"] == "<pad>" and saved["objective"]["class"].endswith("Seq2Seq")
    done = run("experiments.generate", f"--workdir={workdir}", "--prompt=def self", "--max_new_tokens=3")
    assert done.code == 0, done.err
    fields = ("--config.num_steps=2", "--config.data.batch_size=4", "--config.eval_batches=1")
    resumed = run("experiments.train", f"--workdir={workdir}", *fields)
    assert resumed.code == 0 and "resuming at step 0 of 2" in resumed.err, resumed.err
    assert run("experiments.export", f"--workdir={workdir}", f"--out={out}", "--checkpoint=0").code == 0
    assert load(out)[0] == load(source)[0]
    wrong = run("experiments.import", f"--source={source}", f"--workdir={tmp_path}/x", f"--config={SMALL}:{corpus}")
    assert wrong.code == 2 and "data.task='Packed()': does not fit model=T5Config()" in wrong.err, wrong.err


BAD = {
    "no source": (["--workdir={t}/r"], "--source: not given"),
    "no such source": (["--source={t}/nothing here", "--workdir={t}/r"], "no such folder"),
    "encoder": (["--source={t}/bert", "--workdir={t}/r"], "BertConfig: not a language model"),
    "no tokenizer": (["--source={t}/gpt", "--workdir={t}/r"], "no tokenizer; expected tokenizer.json"),
    "too long": (["--source={theirs}", "--workdir={t}/r", "--config=configs/gpt/tiny.py"], "data.seq_len=128"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_imports_are_one_clear_line(case, theirs, tmp_path):
    config = BertConfig(vocab_size=5, max_length=8, num_layers=1, num_heads=1, embed_dim=4)
    write(tmp_path / "bert", config, load(theirs)[2])
    write(tmp_path / "gpt", GPTConfig(vocab_size=5, max_length=8, num_layers=1, num_heads=1, embed_dim=4))
    args, message = BAD[case]
    done = run("experiments.import", *(a.format(t=tmp_path, theirs=theirs) for a in args))
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1, done.err


def test_bad_exports_are_one_clear_line(tmp_path):
    for args, message in [
        ([f"--out={tmp_path}/x"], "--workdir: not given"),
        ([f"--workdir={tmp_path}"], "--out: not given"),
        ([f"--workdir={tmp_path}", f"--out={tmp_path}/x"], "no checkpoint here"),
        ([f"--workdir={tmp_path}", f"--out={tmp_path}/x", "--max_shard_gb=0"], "--max_shard_gb=0.0"),
    ]:
        done = run("experiments.export", *args)
        assert done.code == 2 and message in done.err and done.err.count("\n") == 1, done.err
