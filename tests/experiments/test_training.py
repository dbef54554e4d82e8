"""Training from the command line: kills, resuming, and commands that need only the run."""

import json
import os
import shutil
import signal

import pytest

from jaxnlp import config as configs
from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.run_folder.metric_log import read_log
from tests.entry import run, start, wait_for
from tests.experiments.small_runs import arrays, assert_same_bits, losses, train


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A finished run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = train(corpus, workdir)
    assert done.code == 0, done.err
    return workdir, done


def test_what_a_finished_run_prints_and_leaves(finished):
    workdir, done = finished
    for words in (
        "this model",
        "unigram entropy of the split",
        "gzip -9",
        "xz -9e",
        "bits/byte",
        "a sample, from 'def main'",
        "python -m experiments.train --workdir=",
        "python -m experiments.generate --workdir=",
        "--config.model.num_layers=3",
    ):
        assert words in done.out, words
    for path in (
        workdir / "checkpoints" / "12",
        workdir / "metrics.jsonl",
        workdir / "curves.png",
        workdir / "config.json",
    ):
        assert path.exists() and str(path) in done.out
    assert "step 12/12" in done.err and "tok/s" in done.err
    assert list((workdir / "tensorboard").iterdir())
    rows = read_log(workdir / "metrics.jsonl")
    train_rows = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in train_rows] == list(range(1, 13))
    assert {"loss", "grad_norm", "learning_rate", "weight", "tokens_per_second", "mfu"} <= set(train_rows[-1])
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [4, 8, 12]
    assert train_rows[-1]["loss"] < train_rows[0]["loss"] - 0.5


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="plain"),
        pytest.param(("model.dropout_rate=0.1", "accum_steps=2"), id="dropout and accumulation"),
        pytest.param(
            ("steps_per_call=2", "log_every=2", "optim.name=muon"), id="steps per call", marks=pytest.mark.slow
        ),
        pytest.param(
            ("model.policy.compute_dtype=float16", "model.scan_layers=true"),
            id="float16, scanned",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_and_resumed_is_the_same_run_to_the_last_bit(corpus, tmp_path, overrides):
    """Train 2N steps = train N, kill -9, resume, N more: parameters, optimizer state and batches."""
    overrides = (*overrides, "num_steps=60", "checkpoint_every=10", "eval_every=20", "sample_tokens=0")
    assert train(corpus, tmp_path / "whole", *overrides).code == 0
    killed = train(corpus, tmp_path / "killed", *overrides, begin=start)
    wait_for(lambda: max(Reader(tmp_path / "killed").steps(), default=0) >= 20, killed)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait()
    assert killed.code == -signal.SIGKILL
    at = max(Reader(tmp_path / "killed").steps())
    assert 20 <= at < 60
    resumed = train(corpus, tmp_path / "killed", *overrides)
    assert resumed.code == 0, resumed.err
    assert f"resuming at step {at} of 60" in resumed.err
    assert_same_bits(arrays(tmp_path / "whole", 60), arrays(tmp_path / "killed", 60))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    data = [Reader(tmp_path / name).read(60).data for name in ("whole", "killed")]
    assert data[0] == data[1] and data[0]["position"] == 60 * 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_saves_and_says_how_to_go_on(corpus, tmp_path, number):
    overrides = ("num_steps=100000", "checkpoint_every=0", "eval_every=0", "optim.schedule=constant")
    going = train(corpus, tmp_path / "run", *overrides, begin=start)
    wait_for(lambda: len(losses(tmp_path / "run")) > 3, going)
    os.kill(going.process.pid, number)
    going.wait()
    assert going.code == 128 + number
    step = max(Reader(tmp_path / "run").steps())
    assert f"stopped by {number.name} at step {step:,} of 100,000; the checkpoint is saved. Resume with:" in going.out
    command = going.out.strip().splitlines()[-1]
    assert command.strip().endswith(f"python -m experiments.train --workdir={tmp_path / 'run'}")
    # The command that it prints, with fewer steps.
    args = [*command.split()[3:], f"--config.num_steps={step + 3}"]
    again = run("experiments.train", *args)
    assert again.code == 0, again.err
    assert f"resuming at step {step:,} of {step + 3:,}" in again.err
    assert sorted(losses(tmp_path / "run"))[-1] == step + 3


def test_resuming_needs_no_config(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    done = run("experiments.train", f"--workdir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert "resuming at step 8 of 12" in done.err
    assert_same_bits(arrays(tmp_path / "run", 12), arrays(finished[0], 12))


@pytest.mark.parametrize("damage", ["truncated", "deleted", "flipped"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(corpus, finished, tmp_path, damage):
    shutil.copytree(finished[0], tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "12"
    victim = max((newest / "params").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(victim.read_bytes())
    if damage == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    else:
        victim.unlink()
    seen = run("experiments.evaluate", f"--workdir={tmp_path / 'run'}", "--json")
    assert seen.code == 0 and json.loads(seen.out)["step"] == 8
    assert "the checkpoint of step 12 is damaged" in seen.err and victim.name in seen.err
    done = train(corpus, tmp_path / "run")
    assert done.code == 0, done.err
    assert "the checkpoint of step 12 is damaged" in done.err and "resuming at step 8" in done.err
    assert_same_bits(arrays(tmp_path / "run", 12), arrays(finished[0], 12))
    assert len(list((tmp_path / "run" / "damaged").iterdir())) == 1


def test_a_config_that_cannot_resume_names_the_field(corpus, finished):
    workdir, _ = finished
    for override, message in (
        (
            "model.num_layers=2",
            "error: model.num_layers: the checkpoint has 1 and the config has 2; a run cannot resume",
        ),
        ("data.seq_len=8", "error: data.seq_len: the checkpoint has 16 and the config has 8"),
        ("optim.name=lion", "error: optim.name: the checkpoint has 'adamw' and the config has 'lion'"),
        ("model.policy.compute_dtype=float16", "error: model.policy.compute_dtype: the checkpoint has 'float32'"),
    ):
        done = train(corpus, workdir, override)
        assert done.code == 2 and message in done.err, done.err


def test_a_config_that_can_resume_says_what_changed(corpus, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    fields = ("num_steps=14", "optim.learning_rate=1e-3", "model.remat=full", "optim.clip_norm=None")
    done = train(corpus, tmp_path / "run", *fields)
    assert done.code == 0, done.err
    for words in (
        "num_steps changed from 12 to 14",
        "optim.learning_rate changed from 0.01 to 0.001",
        "model.remat changed from 'none' to 'full'",
    ):
        assert words in done.err


def test_a_corpus_that_changed_cannot_be_gone_on_with(corpus, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    text = (corpus / "train.txt").read_text()
    try:
        (corpus / "train.txt").write_text(text + "\none more document\n")
        done = train(corpus, tmp_path / "run", "num_steps=14")
    finally:
        (corpus / "train.txt").write_text(text)  # the same text with another modification time: the same corpus
    again = train(corpus, tmp_path / "run", "num_steps=14")
    assert again.code == 0 and "resuming at step 12 of 14" in again.err
    assert done.code == 2 and "the corpus has changed since the checkpoint of step 12" in done.err


def test_the_resolved_config_runs_again_from_its_json(finished, tmp_path):
    workdir, _ = finished
    stored = configs.load_json(workdir / "config.json")
    assert stored.model.vocab_size == 257
    done = run(
        "experiments.train",
        f"--config_json={workdir / 'config.json'}",
        f"--workdir={tmp_path / 'again'}",
        "--config.keep_last=1",
    )
    assert done.code == 0, done.err
    assert_same_bits(arrays(tmp_path / "again", 12), arrays(workdir, 12))
    assert configs.diff(stored, configs.load_json(tmp_path / "again" / "config.json")) == [("keep_last", 3, 1)]


def test_generate_and_evaluate_need_only_the_run(finished, tmp_path):
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "run" / "checkpoints")
    out = run(
        "experiments.generate",
        f"--workdir={tmp_path / 'run'}",
        "--prompt=def main",
        "--max_new_tokens=12",
        "--temperature=0",
    )
    assert out.code == 0 and out.out.startswith("def main"), out.err
    several = run(
        "experiments.generate",
        f"--workdir={tmp_path / 'run'}",
        "--prompt=a",
        "--prompt=b",
        "--num_samples=2",
        "--max_new_tokens=5",
    )
    assert several.out.count("--- ") == 4
    logged = [r for r in read_log(finished[0] / "metrics.jsonl") if r["kind"] == "validation"][-1]
    for choice in ("latest", "12"):
        done = run(
            "experiments.evaluate",
            f"--workdir={tmp_path / 'run'}",
            "--split=validation",
            "--json",
            f"--checkpoint={choice}",
        )
        assert done.code == 0, done.err
        assert json.loads(done.out)["loss"] == pytest.approx(logged["loss"], rel=1e-6)
    eight = run("experiments.evaluate", f"--workdir={tmp_path / 'run'}", "--checkpoint=8")
    assert "step 8, validation split" in eight.out and "bits per byte" in eight.out


def test_steps_per_call_must_fit_the_step_it_resumes_at(corpus, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    fields = ("num_steps=40", "steps_per_call=8", "log_every=8", "eval_every=8", "checkpoint_every=8")
    done = train(corpus, tmp_path / "run", *fields)
    assert done.code == 2 and "steps_per_call=8: does not divide the step of the checkpoint, 12" in done.err


def test_where_every_checkpoint_is_damaged_nothing_is_touched(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        (folder / "MANIFEST.json").unlink()
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    for _ in range(2):
        done = run("experiments.train", f"--workdir={tmp_path / 'run'}")
        assert done.code == 2 and "every checkpoint is damaged (step 12: " in done.err
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == log and not (tmp_path / "run" / "damaged").exists()


def test_the_printed_generate_command_works_where_the_context_is_short(finished):
    workdir, done = finished
    line = next(line for line in done.out.splitlines() if "experiments.generate" in line)
    assert line.split("experiments.generate")[1] == f" --workdir={workdir} --prompt='def main'"
    out = run("experiments.generate", f"--workdir={workdir}", "--prompt=def main")
    assert out.code == 0 and out.out.startswith("def main"), out.err


def test_a_run_with_a_kernel_of_another_platform_still_generates_here(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "12"
    path = folder / "config" / "metadata"
    path.write_text(path.read_text().replace("jaxnlp.nn.kernels:Einsum", "jaxnlp.nn.kernels:Flash"))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["config/metadata"]
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    out = run("experiments.generate", f"--workdir={tmp_path / 'run'}", "--prompt=def main")
    assert out.code == 0 and "note: Flash() does not run on cpu; using Einsum()" in out.err, out.err
