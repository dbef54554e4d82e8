"""Training from the command line: kills, resuming and errors."""

import json
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from jaxnlp import config as configs
from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.run_folder.metric_log import read_log
from tests.entry import ROOT, run, start, wait_for

CONFIG = ROOT / "tests" / "experiments" / "small.py"


def train(corpus, workdir, *overrides, begin=run, env=None):
    args = (f"--config={CONFIG}:{corpus}", f"--workdir={workdir}", *(f"--config.{o}" for o in overrides))
    return begin("experiments.train", *args, env=env)


def arrays(workdir, step):
    """Every array of a checkpoint, by path, as bytes."""
    import orbax.checkpoint as ocp

    leaves = {}
    for item in ("params", "rest"):
        tree = ocp.StandardCheckpointer().restore(pathlib.Path(workdir).absolute() / "checkpoints" / str(step) / item)
        import jax

        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            leaves[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return leaves


def assert_same_bits(a, b):
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes(), name


def losses(workdir):
    return {
        row["step"]: row["loss"] for row in read_log(pathlib.Path(workdir) / "metrics.jsonl") if row["kind"] == "train"
    }


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


def test_checkpoints_kept_are_the_newest_and_the_best(corpus, tmp_path):
    overrides = ("keep_last=1", "keep_best=1", "num_steps=20", "optim.schedule=constant", "optim.learning_rate=0.3")
    assert train(corpus, tmp_path / "run", *overrides).code == 0
    reader = Reader(tmp_path / "run")
    validation = {
        r["step"]: r["loss"] for r in read_log(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "validation"
    }
    best = min(validation, key=lambda s: validation[s])
    assert set(reader.steps()) == {best, 20} and reader.best() == best


def test_a_second_process_in_the_same_folder_refuses(corpus, tmp_path):
    first = train(corpus, tmp_path / "run", "num_steps=100000", "optim.schedule=constant", begin=start)
    wait_for(lambda: len(losses(tmp_path / "run")) > 0, first)
    second = train(corpus, tmp_path / "run", "num_steps=100000", "optim.schedule=constant")
    assert second.code == 2
    assert f"another process is training here (process {first.process.pid} on " in second.err
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.wait().code == 128 + signal.SIGTERM


def test_a_full_disk_is_a_clear_error_and_older_checkpoints_are_intact(corpus, tmp_path):
    """A file-size limit simulates the full disk: writes fail half-way with the operating system's error."""
    assert train(corpus, tmp_path / "run").code == 0
    before = {step: arrays(tmp_path / "run", step) for step in Reader(tmp_path / "run").steps()}
    logging = start_with_file_limit(corpus, tmp_path / "run", 2000)
    assert logging.code == 2 and "Traceback" not in logging.err
    assert "cannot be written (File too large)" in logging.err.strip().splitlines()[-1]
    full = start_with_file_limit(corpus, tmp_path / "run", 8192, "log_every=0", "eval_every=0")
    assert full.code == 2, full.err
    line = full.err.strip().splitlines()[-1]
    assert (
        line.startswith("error: ")
        and "was not written (File too large)" in line
        and "older checkpoints are intact (step 4, 8, 12)" in line
    )
    assert "Traceback" not in full.err
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["12", "4", "8"]
    for step, wanted in before.items():
        Reader(tmp_path / "run").verify(step)
        assert_same_bits(arrays(tmp_path / "run", step), wanted)
    done = train(corpus, tmp_path / "run", "num_steps=16")  # with free space it resumes
    assert done.code == 0 and "resuming at step 12 of 16" in done.err


def start_with_file_limit(corpus, workdir, size, *overrides):
    import subprocess
    import sys
    import types

    program = (
        "import resource, runpy, signal, sys\n"
        f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        "runpy.run_module('experiments.train', run_name='__main__', alter_sys=True)\n"
    )
    args = [
        f"--config={CONFIG}:{corpus}",
        f"--workdir={workdir}",
        "--config.num_steps=16",
        *(f"--config.{o}" for o in overrides),
    ]
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, cwd=ROOT, env=env, timeout=240
    )
    return types.SimpleNamespace(code=done.returncode, err=done.stderr)


def test_no_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    import jax
    import jax.numpy as jnp

    from jaxnlp.errors import UserError
    from jaxnlp.training.run_folder.checkpoint import Writer
    from jaxnlp.training.step.state import TrainState, saved_trees

    writer = Writer(tmp_path, 1, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    state = TrainState(
        jnp.int32(5), {"w": jnp.ones(1000)}, (), jax.random.key_data(jax.random.key(0)), jnp.int32(0), None
    )
    with pytest.raises(
        UserError, match=r"no room for the checkpoint of step 5 \(0.0 MB free, .*there is no older checkpoint"
    ):
        writer.save(5, saved_trees(state), {})
    writer.close()


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(corpus, tmp_path):
    done = train(
        corpus,
        tmp_path / "run",
        "optim.learning_rate=1e18",
        "optim.clip_norm=1e30",
        "optim.warmup_steps=6",
        "optim.name=sgd",
    )
    assert done.code == 2
    line = done.err.strip().splitlines()[-1]
    assert line.startswith("error: step "), done.err
    step = int(line.split("step ")[1].split(":")[0])
    assert "not finite" in line and f"examples {(step - 1) * 8} to {step * 8 - 1} of the corpus, fingerprint " in line
    good = max(Reader(tmp_path / "run").steps(), default=None)
    assert ("there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}") in line
    skipping = train(
        corpus,
        tmp_path / "skip",
        "optim.learning_rate=1e18",
        "optim.clip_norm=1e30",
        "optim.name=sgd",
        "on_nonfinite=skip",
    )
    rows = [r for r in read_log(tmp_path / "skip" / "metrics.jsonl") if r["kind"] == "train"]
    assert skipping.code == 0 and rows[-1]["skipped"] > 0


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


def test_a_trace_is_written_for_the_steps_asked_for(corpus, tmp_path):
    args = (
        f"--config={CONFIG}:{corpus}",
        f"--workdir={tmp_path / 'run'}",
        "--profile_steps=3:5",
        "--config.sample_tokens=0",
    )
    done = run("experiments.train", *args)
    assert done.code == 0 and "wrote the trace of steps 3 to 5" in done.err
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


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


def test_a_signal_ends_the_last_evaluation_and_loses_nothing(corpus, tmp_path):
    from jaxnlp.evals import loss
    from jaxnlp.training.loops import supervised

    e = configs.load_json(write_config(corpus, tmp_path, eval_every=0, checkpoint_every=0, eval_batches=2))
    evaluated = []
    original = loss.eval_batches

    def interrupted(store, data, limit, *rest):
        for i, batch in enumerate(original(store, data, limit, *rest)):
            if limit is None and i == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            evaluated.append(limit)
            yield batch

    loss.eval_batches = interrupted
    try:
        result = supervised.train(e, tmp_path / "run")
    finally:
        loss.eval_batches = original
    assert result.signal == signal.SIGTERM and result.validation is None
    assert evaluated == [2, 2, None, None]
    assert Reader(tmp_path / "run").steps() == [12]
    again = supervised.train(e, tmp_path / "run")
    assert again.signal is None and again.validation["loss"] > 0


def write_config(corpus, folder, **fields):
    """The small config with fields changed, over all devices, as JSON."""
    import dataclasses

    from jaxnlp.sharding.rules import Sharding
    from tests.experiments import small

    path = folder / "config.json"
    configs.save_json(dataclasses.replace(small.get_config(str(corpus)), sharding=Sharding(), **fields), path)
    return path


def test_checkpoints_are_scored_on_the_same_batches(corpus, tmp_path):
    done = train(corpus, tmp_path / "run", "eval_batches=1", "optim.learning_rate=1e-20")
    assert done.code == 0, done.err
    reader = Reader(tmp_path / "run")
    scored = [reader.score(step) for step in reader.steps()]
    scores = [entry[1] for entry in scored if entry is not None]
    assert len(scores) == 3 and max(scores) - min(scores) < 1e-6
    full = [r for r in read_log(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "full_validation"]
    assert [r["step"] for r in full] == [12] and abs(full[0]["loss"] - scores[0]) > 1e-4


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


def test_a_trace_of_steps_that_did_not_run_is_reported(corpus, tmp_path, capsys):
    import dataclasses

    from jaxnlp.training.loops import supervised

    e = configs.load_json(write_config(corpus, tmp_path, sample_tokens=0, eval_every=0, checkpoint_every=0))
    supervised.train(e, tmp_path / "a", (50, 60))
    several = dataclasses.replace(e, steps_per_call=4, log_every=4)
    supervised.train(several, tmp_path / "b", (6, 7))  # within the second call
    messages = capsys.readouterr().err.splitlines()
    assert "note: --profile_steps=50:60: none of these steps ran, so there is no trace" in messages
    assert any(message.startswith("wrote the trace of steps 5 to 8 to") for message in messages)
