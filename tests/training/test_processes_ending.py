"""Whatever ends one process of a job ends all, with a one-line reason; the run then resumes exactly."""

import resource
import signal

import jax
import numpy as np
import pytest

from jaxnlp.sharding.rules import path_name
from jaxnlp.training.load import load
from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.run_folder.metric_log import read_log
from tests.entry import run
from tests.jobs import begin, config, ended, free_port, wait_until

pytestmark = pytest.mark.slow
TABLE = "ZERO3,data=2,fsdp=2"
LONG = ("num_steps=60", "checkpoint_every=10", "eval_every=0", "log_every=2", "model.num_layers=1")
AGAIN = "restart all processes with the same command"


def flags(corpus, workdir, *overrides):
    return (*config(corpus, TABLE, *overrides), f"--workdir={workdir}")


def start(corpus, workdir, *overrides, **kwargs):
    return begin(2, "experiments.train", *flags(corpus, workdir, *overrides), devices=4, **kwargs)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """An uninterrupted run of two processes."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    ended(start(corpus, workdir, *LONG))
    return workdir


def goes_on(corpus, workdir, whole):
    """Restarts the run; its parameters and losses are bit-identical to those of an uninterrupted run."""
    assert 0 < Reader(workdir).steps()[-1] < 60
    ended(start(corpus, workdir, *LONG))
    actual, wanted = (params(folder, 60) for folder in (workdir, whole))
    assert actual.keys() == wanted.keys() and actual
    for name, value in wanted.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    assert losses(workdir) == losses(whole)


def params(workdir, step):
    """Parameters of a checkpoint by path, on one device."""
    tree = load(workdir, str(step)).params
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_log(workdir / "metrics.jsonl") if row["kind"] == "train"}


@pytest.mark.parametrize("victim", [0, 1])
def test_one_killed_ends_the_other_and_a_restart_goes_on_to_the_bit(corpus, tmp_path, whole, victim):
    running = start(corpus, tmp_path / "run", *LONG)
    wait_until(Reader(tmp_path / "run").steps, running)
    running[victim].process.kill()
    survivor = running[1 - victim].wait(60)
    assert survivor.code not in (0, None)
    reported = f"process {victim} of 2 has died" in survivor.err and AGAIN in survivor.err
    # If process 0 dies, JAX's client, without its service, may end the other process before it prints the line.
    assert reported or (victim == 0 and "JAX distributed service detected fatal errors" in survivor.err)
    goes_on(corpus, tmp_path / "run", whole)


def test_sigterm_to_one_saves_the_same_step_in_both_and_says_how_to_go_on(corpus, tmp_path, whole):
    running = start(corpus, tmp_path / "run", *LONG, "checkpoint_every=0")
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and losses(tmp_path / "run"), running)
    running[1].process.terminate()
    assert [entry.wait(60).code for entry in running] == [128 + signal.SIGTERM] * 2
    (step,) = Reader(tmp_path / "run").steps()
    assert step % 2 == 0  # agreed on at a logged step
    assert f"stopped by SIGTERM at step {step} of 60; the checkpoint is saved. Resume with:" in running[0].out
    assert f"-m experiments.train --workdir={tmp_path / 'run'}" in running[0].out
    Reader(tmp_path / "run").verify(step)
    goes_on(corpus, tmp_path / "run", whole)


@pytest.mark.parametrize("where", ["both", 1, 0])
def test_an_error_ends_both_with_one_line(corpus, tmp_path, where):
    wrong = ("--config.data.batch_size=6",)
    only = dict.fromkeys((0, 1), wrong) if where == "both" else {where: wrong}
    running = start(corpus, tmp_path / "run", only=only)
    assert [entry.wait(60).code for entry in running] == [2, 2]
    lines = running[0].err.strip().splitlines()
    assert len(lines) == 1 and lines[0].count("data.batch_size=6: does not divide") == 1
    assert lines[0].startswith("error: process 1 of 2 failed: " if where == 1 else "error: data.batch_size=6")
    assert "Traceback" not in running[0].err + running[1].err


@pytest.mark.parametrize("limit", [8192, 1])
def test_a_full_disk_ends_both_with_one_line_and_older_checkpoints_are_intact(corpus, tmp_path, limit):
    """A file-size limit simulates the full disk; the lower limit also covers standard error."""
    running = start(corpus, tmp_path / "run", *LONG, "num_steps=2000", "log_every=0")
    wait_until(Reader(tmp_path / "run").steps, running)
    resource.prlimit(running[0].process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    assert [entry.wait(90).code for entry in running] == [2, 2]
    line = running[limit == 1].err.strip().splitlines()[-1]
    assert "File too large" in line and "the older checkpoints are intact" in line and "to resume" in line
    assert "Traceback" not in running[0].err + running[1].err
    Reader(tmp_path / "run").verify(Reader(tmp_path / "run").steps()[-1])


def test_a_folder_that_cannot_be_written_ends_both_with_one_line(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    running = start(corpus, tmp_path / "file" / "run")
    assert [entry.wait(60).code for entry in running] == [2, 2]
    (line,) = running[0].err.strip().splitlines()
    assert line.startswith(f"error: --workdir={tmp_path / 'file' / 'run'}: cannot be written")


def test_settings_that_are_not_whole(corpus, tmp_path):
    entry = run("experiments.train", *flags(corpus, tmp_path / "run"), "--num_processes=2")
    assert entry.code == 2 and "--coordinator_address, --process_id: not set, but --num_processes=2" in entry.err
    place = ("--num_processes=2", "--process_id=0", f"--coordinator_address=localhost:{free_port()}")
    measures = run("experiments.bench", *place)
    assert measures.code == 2 and "--distributed: this entry point supports one process" in measures.err
    lonely = run("experiments.train", *flags(corpus, tmp_path / "run"), *place, "--join_timeout=2")
    assert (
        lonely.code == 2
        and "some processes have not joined at localhost:" in lonely.err
        and " after 2 s;" in lonely.err
    )
