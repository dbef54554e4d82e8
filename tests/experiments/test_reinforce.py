"""REINFORCE, an example of a custom training loop: it learns, resumes bit-exactly and runs on eight devices."""

import ast
import os
import signal

from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.run_folder.metric_log import read_log
from tests.entry import ROOT, run, start, wait_for
from tests.experiments.small_runs import arrays, assert_same_bits


def rewards(workdir):
    return [row["reward"] for row in read_log(workdir / "metrics.jsonl")]


def test_killed_and_resumed_is_the_same_run_to_the_last_bit(tmp_path):
    flags = ("--num_steps=40", "--checkpoint_every=5")
    straight = run("experiments.reinforce", f"--workdir={tmp_path / 'straight'}", *flags)
    assert straight.code == 0, straight.err
    killed = start("experiments.reinforce", f"--workdir={tmp_path / 'killed'}", *flags)
    wait_for(lambda: max(Reader(tmp_path / "killed").steps(), default=0) >= 10, killed)
    os.kill(killed.process.pid, signal.SIGKILL)
    assert killed.wait().code == -signal.SIGKILL
    step = max(Reader(tmp_path / "killed").steps())
    assert 10 <= step < 40
    resumed = run("experiments.reinforce", f"--workdir={tmp_path / 'killed'}", *flags)
    assert resumed.code == 0 and f"resuming at step {step} of 40" in resumed.err, resumed.err
    assert_same_bits(*(arrays(tmp_path / name, 40) for name in ("straight", "killed")))
    assert rewards(tmp_path / "killed") == rewards(tmp_path / "straight")


def test_it_learns_on_eight_devices_and_its_run_generates(tmp_path):
    eight = {"JAX_NUM_CPU_DEVICES": "8"}
    done = run("experiments.reinforce", f"--workdir={tmp_path}", "--num_steps=60", env=eight)
    assert done.code == 0, done.err
    assert rewards(tmp_path)[-1] > 2 * rewards(tmp_path)[0]
    text = run("experiments.generate", f"--workdir={tmp_path}", "--max_new_tokens=8", env=eight)
    assert text.code == 0, text.err


def test_the_example_is_one_short_file():
    source = (ROOT / "experiments" / "reinforce.py").read_text()
    assert len(source.splitlines()) <= 120
    assert (
        max(node.end_lineno - node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
        < 60
    )
