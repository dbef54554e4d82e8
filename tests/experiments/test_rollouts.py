"""A feed of rollouts in the supervised loop: it resumes bit-exactly, also after an evaluation that failed."""

import os
import signal

from jaxnlp.training.run_folder.checkpoint import Reader
from tests.entry import run, start, wait_for
from tests.experiments.small_runs import arrays, assert_same_bits, losses


def rollouts(corpus, workdir, *flags, begin=run):
    return begin("tests.experiments.rollouts", f"--corpus={corpus}", f"--workdir={workdir}", *flags)


def test_killed_and_resumed_has_the_same_losses(corpus, tmp_path):
    flags = ("--num_steps=30", "--checkpoint_every=5")
    straight = rollouts(corpus, tmp_path / "straight", *flags)
    assert straight.code == 0, straight.err
    assert "the loss was not evaluated (eval_every=None)" in straight.out
    killed = rollouts(corpus, tmp_path / "killed", *flags, begin=start)
    wait_for(lambda: max(Reader(tmp_path / "killed").steps(), default=0) >= 5, killed)
    os.kill(killed.process.pid, signal.SIGKILL)
    assert killed.wait().code == -signal.SIGKILL
    step = max(Reader(tmp_path / "killed").steps())
    assert 5 <= step < 30
    resumed = rollouts(corpus, tmp_path / "killed", *flags)
    assert resumed.code == 0 and f"resuming at step {step} of 30" in resumed.err, resumed.err
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert len(losses(tmp_path / "straight")) == 30
    assert_same_bits(*(arrays(tmp_path / name, 30) for name in ("straight", "killed")))


def test_an_evaluation_without_the_objectives_array_names_it_after_saving(corpus, tmp_path):
    failed = rollouts(corpus, tmp_path, "--num_steps=6", "--eval_every=0", "--checkpoint_every=0")
    assert failed.code == 2 and "Traceback" not in failed.err, failed.err
    assert "objective=PolicyGradient(): reads the array 'advantages', but a batch of the split has only" in failed.err
    assert "set eval_every=None" in failed.err
    assert Reader(tmp_path).steps() == [6]
    again = rollouts(corpus, tmp_path, "--num_steps=7")
    assert again.code == 0 and "resuming at step 6 of 7" in again.err, again.err
