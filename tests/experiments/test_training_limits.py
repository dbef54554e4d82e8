"""Training from the command line: full disks, locks, losses that are not finite, what is kept, and traces."""

import os
import shutil
import signal

import pytest

from jaxnlp import config as configs
from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.run_folder.metric_log import read_log
from tests.entry import ROOT, run, start, wait_for
from tests.experiments.small_runs import CONFIG, arrays, assert_same_bits, losses, train


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
