"""Every entry point prints and writes the same in a job of two processes as in one."""

import json

import jax
import numpy as np
import pytest
import tokenizers

from jaxnlp.interop.huggingface import save
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.sharding.functional import init_params
from jaxnlp.training.load import load
from tests.entry import ROOT
from tests.jobs import MESHED, begin, ended, job

pytestmark = pytest.mark.slow
TASK = ROOT / "tests" / "experiments" / "small_task.py"


def both(module, *args, write=None):
    """Runs an entry point in one process and in two, each over eight devices; asserts that the output is the same.

    Args:
        write: a flag for the output path, the path for one process, and the path for two.
    """
    flag, *paths = write or (None, None, None)
    arguments = [(*args, f"{flag}={path}") if flag else args for path in paths]
    single, *pair = ended(begin(1, module, *arguments[0]) + begin(2, module, *arguments[1]))
    output = lambda entry, path: entry.out.replace(str(path), "OUT")
    assert output(pair[0], paths[1]) == output(single, paths[0])
    assert pair[1].out == pair[1].err == ""
    return pair[0]


def same_files(by_one, by_two):
    actual, wanted = (
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*")} for folder in (by_two, by_one)
    )
    assert actual.keys() == wanted.keys() and actual
    assert [name for name in wanted if actual[name] != wanted[name]] == []


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A run imported by two processes, its parameters split over the devices of both."""
    folder = tmp_path_factory.mktemp("jobs")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "def": 1, "self": 2, "for": 3}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.add_special_tokens(["<|endoftext|>"])
    model = GPTConfig(max_length=32, num_layers=2, num_heads=2, embed_dim=16, vocab_size=5)
    params = init_params(model.build(), jax.random.key(0), np.zeros((1, 4), np.int32))
    save(folder / "theirs", model, params, words)
    config = f"--config={MESHED}:{corpus},ZERO3,data=2,fsdp=4"
    for processes in (1, 2):
        job(
            processes,
            "experiments.import",
            f"--source={folder / 'theirs'}",
            f"--workdir={folder / str(processes)}",
            config,
        )
    by_one, by_two = (load(folder / name) for name in ("1", "2"))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(by_one.params), jax.device_get(by_two.params))
    assert by_one.saved.experiment.model == by_two.saved.experiment.model
    return folder / "2"


def test_export_writes_the_same_bytes(run, tmp_path):
    by_one, by_two = tmp_path / "one", tmp_path / "two"
    both("experiments.export", f"--workdir={run}", "--max_shard_gb=0.000004", write=("--out", by_one, by_two))
    same_files(by_one, by_two)
    assert len([*by_two.glob("*.safetensors")]) > 1 and (by_two / "tokenizer.json").exists()


def test_evaluate(run):
    done = both("experiments.evaluate", f"--workdir={run}")
    assert "loss" in done.out and "perplexity" in done.out


def test_generate_draws_the_same_text(run):
    common = (f"--workdir={run}", "--prompt=def self", "--num_samples=2", "--max_new_tokens=6")
    assert "--- 2 of 2" in both("experiments.generate", *common).out
    assert "score -" in both("experiments.generate", *common, "--num_beams=2").out


@pytest.mark.full
def test_attention_map_draws_the_same_picture(run, tmp_path):
    by_one, by_two = tmp_path / "one.png", tmp_path / "two.png"
    both("experiments.attention_map", f"--workdir={run}", "--text=def self", write=("--out", by_one, by_two))
    assert by_one.read_bytes() == by_two.read_bytes()


def test_predict_writes_the_same_lines(tmp_path):
    rows = [
        {"text": f"{text} {i}", "label": label} for i in range(12) for text, label in (("yes", "good"), ("no", "bad"))
    ]
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workdir = tmp_path / "run"
    job(2, "experiments.train", f"--config={TASK}:{tmp_path}", f"--workdir={workdir}")
    by_one, by_two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    flags = (f"--workdir={workdir}", f"--input={tmp_path / 'validation.jsonl'}")
    both("experiments.predict", *flags, write=("--out", by_one, by_two))
    assert by_one.read_bytes() == by_two.read_bytes() and len(by_two.read_text().splitlines()) == len(rows)


def test_tokenize_is_the_work_of_process_0_and_the_other_waits(corpus, tmp_path):
    by_one, by_two = tmp_path / "one", tmp_path / "two"
    config = f"--config={MESHED}:{corpus},DDP"
    both("experiments.tokenize", config, "--splits=train,validation", write=("--out", by_one, by_two))
    same_files(by_one, by_two)
    again = begin(2, "experiments.tokenize", config, f"--out={by_two}")
    assert [entry.wait(60).code for entry in again] == [2, 2]
    assert again[0].err.strip().startswith(f"error: --out={by_two}: already contains a corpus")


@pytest.mark.full
def test_plan_is_of_the_devices_of_all(corpus, tmp_path):
    by_one, by_two = tmp_path / "one", tmp_path / "two"
    config = f"--config={MESHED}:{corpus},ZERO3,data=2,fsdp=4"
    for processes, out in ((1, by_one), (2, by_two)):
        entries = job(processes, "experiments.plan", config, f"--out={out}")
    assert entries[1].out == "" and (by_two / "plan.png").exists()
    by_one, by_two = (json.loads((out / "plan.json").read_text())["plans"][0] for out in (by_one, by_two))
    for field in ("num_devices", "mesh", "memory", "flops", "traffic"):
        assert by_two[field] == by_one[field], field
