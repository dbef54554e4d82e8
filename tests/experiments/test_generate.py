"""Text generation from the command line, with a decoder and with an encoder-decoder."""

import re

import pytest

from tests.entry import ROOT, run

SMALL = ROOT / "tests" / "experiments" / "small.py"
SEQ2SEQ = """
import dataclasses
import importlib.util

spec = importlib.util.spec_from_file_location("small", SMALL)
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)
from jaxnlp.data.text.sentinels import sentinels
from jaxnlp.data.text.span_corruption import SpanCorruption
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.models.t5 import T5Config
from jaxnlp.objectives.seq2seq import Seq2Seq


def get_config(corpus):
    e = small.get_config(corpus)
    e.model = T5Config(num_layers=1, num_heads=2, embed_dim=16, head_dim=8, mlp_dim=32, dropout_rate=0.0)
    e.data = dataclasses.replace(
        e.data, tokenizer=Bytes(special_tokens=sentinels(4)), task=SpanCorruption(), seq_len=32
    )
    e.objective = Seq2Seq()
    return e
"""


@pytest.fixture(scope="module")
def decoder(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("decoder") / "run"
    done = run("experiments.train", f"--config={SMALL}:{corpus}", f"--workdir={workdir}", "--config.sample_tokens=0")
    assert done.code == 0, done.err
    return f"--workdir={workdir}"


@pytest.fixture(scope="module")
def encoder_decoder(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seq2seq")
    (folder / "t5.py").write_text(SEQ2SEQ.replace("SMALL", repr(str(SMALL)), 1))
    done = run("experiments.train", f"--config={folder / 't5.py'}:{corpus}", f"--workdir={folder / 'run'}")
    assert done.code == 0, done.err
    return done, f"--workdir={folder / 'run'}"


def generate(*args):
    done = run("experiments.generate", *args)
    assert done.code == 0, done.err
    return done.out


def test_stop_strings_prefixes_and_streams(decoder):
    args = (decoder, "--prompt=def ", "--forced_prefix=self", "--max_new_tokens=30", "--top_p=1", "--temperature=2")
    whole = generate(*args)
    assert whole.startswith("def self")
    assert generate(*args, "--stream") == whole
    after = whole.removeprefix("def self")
    at = next(i for i in range(2, len(after)) if "\ufffd" not in after[i : i + 2])
    stop = after[at : at + 1]
    for more in ([], ["--stream"]):
        assert (
            generate(*args, *more, f"--stop={stop}", "--stop=never there")
            == "def self" + after.partition(stop)[0] + "\n"
        )


def test_log_probabilities_of_draws_and_beams(decoder):
    out = generate(
        decoder,
        *("--prompt=def ", "--forced_prefix=s", "--max_new_tokens=5", "--min_new_tokens=5", "--temperature=1"),
        *("--min_p=0.01", "--repetition_penalty=1.3", "--log_probs"),
    )
    log_probs = [float(x) for x in re.findall(r"^ +(-\d+\.\d+) +\d+\.\d+%  ", out, re.M)]
    assert len(log_probs) == 6 and re.search(r"%  's'\n", out) and f"{sum(log_probs):.2f}"[:-1] in out
    assert "sum of 6" in out
    beams = ("--num_beams=3", "--num_samples=2", "--length_penalty=0", "--early_stopping=never", "--log_probs")
    out = generate(decoder, "--prompt=def ", "--max_new_tokens=4", *beams)
    scores = re.findall(r"score (-\d+\.\d+)", out)
    sums = re.findall(r"(-\d+\.\d+) +sum of", out)
    assert len(scores) == 2 and scores == sums  # length penalty 0: a text's score is the sum


def test_an_encoder_decoder_reads_the_prompt(encoder_decoder):
    trained, workdir = encoder_decoder
    assert "validation texts, their targets, and the model's outputs:" in trained.out
    assert re.search(r"^  target <extra_id_0>", trained.out, re.M)
    assert re.search(r"^  \| .*<extra_id_0>", trained.out, re.M)
    prompt = "--prompt=def <extra_id_0> self"
    args = (workdir, "--temperature=0", "--max_new_tokens=6", "--min_new_tokens=3")
    forced = generate(*args, prompt, "--forced_prefix=<extra_id_0>a")
    assert forced.startswith("<extra_id_0>a") and "def" not in forced.partition("a")[0]
    out = generate(*args, prompt, "--prompt=x", "--num_beams=2", "--log_probs")
    assert "--- 2 of 2, score -" in out and "sum of" in out


BAD = {
    "min_p": (["--min_p=2"], "min_p=2.0: expected a fraction of the highest"),
    "repetition": (["--repetition_penalty=0"], "repetition_penalty=0.0: expected a positive number"),
    "min tokens": (["--min_new_tokens=-1"], "min_new_tokens=-1: expected 0 or more"),
    "empty stop": (["--stop="], "--stop=: expected a non-empty text"),
    "stop in beams": (["--stop=x", "--num_beams=2"], "--stop: not supported with --num_beams"),
    "stream of beams": (["--stream", "--num_beams=2"], "--stream: not supported with --num_beams"),
    "early stopping": (["--early_stopping=often"], "--early_stopping=often: value should be one of"),
    "start": (["--decoder_start_token=<s>"], "--decoder_start_token=<s>: the vocabulary has no such special token"),
    "too long": (["--forced_prefix=" + "a" * 80], "exceed model.max_length=64"),
    "nothing first": (["--decoder_start_token=none"], "empty prompt; the model has no start token"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_clear_line(case, decoder):
    args, message = BAD[case]
    done = run("experiments.generate", decoder, *args)
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2 and len(lines) == 1 and message in lines[0], done.err
    assert "Traceback" not in done.err
