"""The run folder of a loop without gradients, and hooks."""

import os
import signal
import threading

import numpy as np
import pytest

from jaxnlp.errors import FieldError, UserError
from jaxnlp.training.run_folder.best import Best
from jaxnlp.training.run_folder.checkpoint import Reader, Writer
from jaxnlp.training.run_folder.metric_log import MetricLog, read_log
from jaxnlp.training.run_folder.run_folder import RunFolder
from tests.entry import run, start, wait_for
from tests.training import kmeans


def costs(workdir):
    return {row["step"]: row["cost"] for row in read_log(workdir / "metrics.jsonl")}


def centers(workdir, step):
    return Reader(workdir).restore_item(step, "centers", kmeans.points()[:8])


def test_a_killed_kmeans_resumes_to_the_same_bits(tmp_path):
    done = run("tests.training.kmeans", str(tmp_path / "straight"), "400")
    assert done.code == 0 and "step 400/400  cost " in done.err and "steps/s" in done.err, done.err
    killed = start("tests.training.kmeans", str(tmp_path / "killed"), "400")
    wait_for(lambda: max(Reader(tmp_path / "killed").steps(), default=0) >= 40, killed)
    os.kill(killed.process.pid, signal.SIGKILL)
    assert killed.wait().code == -signal.SIGKILL
    step = max(Reader(tmp_path / "killed").steps())
    assert step < 400
    resumed = run("tests.training.kmeans", str(tmp_path / "killed"), "400")
    assert resumed.code == 0 and f"resuming at step {step} of 400" in resumed.err, resumed.err
    assert costs(tmp_path / "killed") == costs(tmp_path / "straight") and len(costs(tmp_path / "killed")) == 400
    assert costs(tmp_path / "killed")[400] < costs(tmp_path / "killed")[1] / 2
    np.testing.assert_array_equal(centers(tmp_path / "killed", 400), centers(tmp_path / "straight", 400))


def test_sigterm_saves_the_step_and_frees_the_folder(tmp_path):
    running = start("tests.training.kmeans", str(tmp_path), "1000000")
    wait_for(lambda: len(costs(tmp_path)) > 5, running)
    second = run("tests.training.kmeans", str(tmp_path), "5")
    assert second.code == 1 and f"another process is training here (process {running.process.pid} on " in second.err
    os.kill(running.process.pid, signal.SIGTERM)
    ended = running.wait()
    step = max(costs(tmp_path))
    assert (
        ended.code == 0 and f"SIGTERM: stopped at step {step:,} of 1,000,000; the newest checkpoint is of" in ended.err
    )
    assert max(Reader(tmp_path).steps()) == max(costs(tmp_path))
    with RunFolder(tmp_path) as folder:
        assert folder.saved_step == max(costs(tmp_path))


def test_steps_end_at_a_stop_and_what_is_due(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.start(10, log_every=2)
        seen = []
        for step in folder.steps(2):
            seen.append((step, folder.due(4), folder.due(0)))
            folder.log({"loss": 1.0})
            if step == 6:
                folder.stop("enough")
        assert seen == [(2, False, False), (4, True, False), (6, False, False)] and folder.signal is None
    assert [row["step"] for row in read_log(tmp_path / "metrics.jsonl")] == [2, 4, 6]


def test_records_and_any_tree_of_arrays_are_restored(tmp_path):
    tree = {"a": [np.arange(3.0), {"b": np.int32(4)}], "c": np.ones((2, 2), np.float16)}
    with RunFolder(tmp_path) as folder:
        assert folder.restore({"state": tree})["state"] is tree and folder.record("notes", 7) == 7
        folder.start(1)
        for _ in folder.steps():
            folder.save({"state": tree}, {"notes": {"x": [1, 2]}})
    empty = {"a": [np.zeros(3), {"b": np.int32(0)}], "c": np.zeros((2, 2), np.float16)}
    with RunFolder(tmp_path) as folder:
        restored = folder.restore({"state": empty})["state"]
        assert folder.record("notes") == {"x": [1, 2]}
    np.testing.assert_array_equal(restored["a"][0], tree["a"][0])
    assert restored["a"][1]["b"] == 4 and restored["c"].dtype == np.float16


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_checkpoint_by_any_metric(tmp_path, mode):
    best = Best.parse(f"squad/f1:{mode}")
    writer = Writer(tmp_path, keep_last=1, keep_best=1, best=best)
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1), (4, 0.4)):
        writer.save(step, {"x": np.zeros(2)}, {}, score)
    writer.wait()
    writer.close()
    wanted = {"min": 3, "max": 2}[mode]
    reader = Reader(tmp_path)
    assert reader.steps() == sorted({wanted, 4}) and reader.best() == wanted
    assert reader.score(4) == (best, 0.4)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path, mode):
    best = Best.parse(f"squad/f1:{mode}")
    writer = Writer(tmp_path, keep_last=1, keep_best=1, best=best)
    for step, score in enumerate((float("nan"), 0.5, float("nan")), 1):
        writer.save(step, {"x": np.zeros(2)}, {}, score)
    writer.wait()
    writer.close()
    assert Reader(tmp_path).steps() == [2, 3] and Reader(tmp_path).best() == 2
    assert best.cost(float("nan")) == float("inf")


def test_a_checkpoint_saved_without_a_score_has_it_when_it_is_measured(tmp_path):
    best = Best.parse("squad/f1:max")
    for scores in ((0.5, None), (0.5, 0.9), (0.5, 0.1)):  # an evaluation interrupted, run again when resumed, and again
        writer = Writer(tmp_path, keep_last=2, keep_best=1, best=best)
        for step, score in enumerate(scores, 1):
            writer.save(step, {"x": np.zeros(2)}, {}, score)
        writer.wait()
        writer.close()
    reader = Reader(tmp_path)
    assert reader.best() == 2 and reader.score(2) == (best, 0.9)
    reader.verify(2)


@pytest.mark.parametrize("text", ["loss", "loss:min", "validation/loss", "validation/loss:less", "/loss:min", "a/:max"])
def test_a_metric_of_another_form_is_refused(text):
    with pytest.raises(FieldError, match="EVALUATOR/METRIC:min"):
        Best.parse(text)


def test_an_error_in_the_loop_leaves_the_folder_usable(tmp_path):
    with pytest.raises(UserError, match="broken"), RunFolder(tmp_path) as folder:
        folder.start(3)
        for _ in folder.steps():
            folder.save({"x": np.ones(1)})
            raise UserError("broken")
    with RunFolder(tmp_path) as folder:
        assert folder.saved_step == 1


def test_a_resumed_log_has_no_rows_of_steps_that_were_lost(tmp_path):
    """A run that was killed at step 5 resumes from its checkpoint of step 3."""
    log = MetricLog(tmp_path)
    for step in range(1, 6):
        log.write(step, "train", {"loss": float(step)})
    log.close()
    resumed = MetricLog(tmp_path, step=3)
    resumed.write(4, "train", {"loss": 0.5})
    resumed.close()
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path / "metrics.jsonl")] == [
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 0.5),
    ]


def test_misuse_of_a_run_folder_is_named(tmp_path):
    with RunFolder(tmp_path / "run") as run:
        with pytest.raises(UserError, match=r"RunFolder.log: the run has not started; call start\(num_steps\) first"):
            run.log({"loss": 1.0})
        with pytest.raises(UserError, match="RunFolder.save: the run has not started"):
            run.save({})
        run.start(num_steps=1)
        with pytest.raises(UserError, match="metric 'step': the log has a column of this name; rename the metric"):
            run.write("train", {"step": 3.0})
        for _ in run.steps():
            run.save({"centers": {"x": np.ones(2)}})
    with pytest.raises(UserError, match="/1: has no record 'config'; a loop without it saved this checkpoint"):
        Reader(tmp_path / "run").read(1)


def test_a_run_in_another_thread_leaves_signals_alone(tmp_path, capsys):
    thread = threading.Thread(target=kmeans.main, args=(str(tmp_path), 2))
    thread.start()
    thread.join()
    assert Reader(tmp_path).steps() == [2] and "note: not in the main thread" in capsys.readouterr().err
