"""Two processes are one run, and a run that changes its number of processes reads on exactly."""

import socket

import numpy as np
import pytest

from jaxnlp.train.checkpoint import Reader
from jaxnlp.train.metrics import read_log
from tests.entry import ROOT, start

pytestmark = pytest.mark.slow
FSDP = ROOT / "tests" / "train" / "split.py"


def train(corpus, workdir, processes, *overrides):
    """A run over 4 devices in all, in one process or two."""
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
