"""Two processes are one run, and a run that changes its number of processes reads on exactly."""

import socket
import time

import jax
import numpy as np
import pytest

from jaxnlp.sharding.rules import path_name
from jaxnlp.train.checkpoint import Reader
from jaxnlp.train.load import load
from jaxnlp.train.metrics import read_log
from tests.entry import ROOT, start

pytestmark = pytest.mark.slow
FSDP = ROOT / "tests" / "train" / "split.py"
LONG = ("steps=60", "checkpoint_every=10", "eval_every=0", "log_every=10", "sample_tokens=0")


def begin(corpus, workdir, processes, *overrides):
    """Starts a run over 4 devices in all, in one process or two."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    running = []
    for i in range(processes):
        env = {"JAX_NUM_CPU_DEVICES": str(4 // processes)}
        args = [f"--config={FSDP}:{corpus}", f"--workdir={workdir}", *(f"--config.{o}" for o in overrides)]
        if processes > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(i),
            }
            args.append("--distributed")
        running.append(start("experiments.train", *args, env=env))
    return running


def train(corpus, workdir, processes, *overrides):
    """A run over 4 devices in all, from beginning to end."""
    running = begin(corpus, workdir, processes, *overrides)
    for entry in running:
        entry.wait()
        assert entry.code == 0, entry.err
    return running


def losses(workdir):
    return {row["step"]: row["loss"] for row in read_log(workdir / "metrics.jsonl") if row["kind"] == "train"}


def test_two_processes_equal_one_and_either_goes_on_from_the_other(corpus, tmp_path):
    train(corpus, tmp_path / "one", 1)
    pair = train(corpus, tmp_path / "two", 2)
    wanted = losses(tmp_path / "one")
    np.testing.assert_allclose(list(losses(tmp_path / "two").values()), list(wanted.values()), rtol=2e-5)
    assert "this model" in pair[0].out and "step 12/12" in pair[0].err
    assert "this model" not in pair[1].out and "tok/s" not in pair[1].err  # one of them speaks
    # 4 steps on two processes, 4 on one, 4 on two.
    for processes, steps in ((2, 4), (1, 8), (2, 12)):
        train(corpus, tmp_path / "mixed", processes, f"steps={steps}", "optim.total_steps=12", "sample_tokens=0")
    np.testing.assert_allclose(list(losses(tmp_path / "mixed").values()), list(wanted.values()), rtol=2e-5)
    assert Reader(tmp_path / "mixed").read(12).data["position"] == 12 * 8


@pytest.mark.parametrize("victim", [0, 1])
def test_one_killed_ends_the_other_and_a_restart_goes_on_to_the_bit(corpus, tmp_path, victim):
    train(corpus, tmp_path / "whole", 2, *LONG)
    running = begin(corpus, tmp_path / "killed", 2, *LONG)
    wait_until(lambda: Reader(tmp_path / "killed").steps(), running)
    running[victim].process.kill()
    survivor = running[1 - victim].wait(60)
    assert survivor.code not in (0, None)
    if victim:  # where process 0 dies, JAX's own abort may come before our line
        assert f"process {victim} of 2 has died" in survivor.err and "start every process again" in survivor.err
    saved = Reader(tmp_path / "killed").steps()
    assert saved and saved[-1] < 60
    train(corpus, tmp_path / "killed", 2, *LONG)
    whole, killed = (params(tmp_path / name, 60) for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and whole
    for name, value in whole.items():
        np.testing.assert_array_equal(killed[name], value, err_msg=name)


def test_an_error_in_one_process_ends_both_with_one_line(corpus, tmp_path):
    running = begin(corpus, tmp_path / "run", 2, "data.batch_size=6")
    assert [entry.wait(60).code for entry in running] == [2, 2]
    assert running[0].err.count("data.batch_size=6: does not divide") == 1


def test_settings_that_are_not_whole(corpus, tmp_path):
    args = (f"--config={FSDP}:{corpus}", f"--workdir={tmp_path / 'run'}")
    entry = start("experiments.train", *args, "--num_processes=2").wait(60)
    assert entry.code == 2 and "--coordinator_address, --process_id: not given, but --num_processes=2" in entry.err
    alone = start("experiments.tokenize", "--distributed").wait(60)
    assert alone.code == 2 and "--distributed: this entry point runs in one process" in alone.err


def wait_until(ready, running, seconds=120):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, running[0].err
        assert all(entry.code is None for entry in running), running[0].err
        time.sleep(0.1)


def params(workdir, step):
    """Parameters of a checkpoint by path, on one device."""
    found = load(workdir, str(step)).params
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(found)}
