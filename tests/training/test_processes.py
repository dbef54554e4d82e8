"""Two processes train as one, and a run resumes exactly with another number of processes or another mesh."""

import json
import shutil

import numpy as np
import pytest

from jaxnlp.training.run_folder.checkpoint import Reader
from jaxnlp.training.run_folder.metric_log import read_log
from tests.jobs import begin, config, ended, job

pytestmark = pytest.mark.slow
ZERO = "ZERO3,data=2,fsdp=4"
APART = "sharding.mesh.dcn={'fsdp': 2}"  # each process has every other shard of the fsdp axis


def train(processes, corpus, workdir, table, *overrides, devices=8):
    flags = config(corpus, table, *overrides)
    return job(processes, "experiments.train", *flags, f"--workdir={workdir}", devices=devices)


def losses(workdir, kind="train"):
    return {row["step"]: row["loss"] for row in read_log(workdir / "metrics.jsonl") if row["kind"] == kind}


def equal(actual, wanted, after=0):
    assert [*actual] == [*wanted] and actual
    steps = [step for step in wanted if step > after]
    np.testing.assert_allclose([actual[s] for s in steps], [wanted[s] for s in steps], rtol=1e-5)


@pytest.fixture(scope="module")
def single(corpus, tmp_path_factory):
    """A run of 12 steps in one process of eight devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    train(1, corpus, workdir, ZERO)
    return workdir


@pytest.fixture(scope="module")
def double(corpus, tmp_path_factory):
    """The same in two processes of four, saved every 4 steps; and the processes."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    return workdir, train(2, corpus, workdir, ZERO, "sample_tokens=8")


def test_two_processes_of_four_devices_equal_one_of_eight(single, double):
    workdir, pair = double
    equal(losses(workdir), losses(single))
    equal(losses(workdir, "validation"), losses(single, "validation"))
    assert "this model" in pair[0].out and "step 12/12" in pair[0].err
    assert "this model" not in pair[1].out and "tok/s" not in pair[1].err  # only process 0 prints
    assert Reader(workdir).read(12).data["position"] == 12 * 8


@pytest.mark.parametrize(
    ("processes", "devices", "table"),
    [(1, 8, "TP,data=4,tensor=2"), (4, 8, "ZERO1,data=4,fsdp=2"), (1, 1, "DDP,data=1"), (2, 8, "DDP,data=8")],
)
def test_what_two_processes_saved_goes_on_elsewhere(single, double, corpus, tmp_path, processes, devices, table):
    """Saved under ZeRO 3; restored on 1 x 8, 4 x 2, 1 x 1 and 2 x 4 devices with different meshes."""
    workdir = tmp_path / "run"
    shutil.copytree(double[0], workdir)
    for step in (8, 12):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    train(processes, corpus, workdir, table, devices=devices)
    equal(losses(workdir), losses(single))
    assert Reader(workdir).read(12).data["position"] == 12 * 8


def test_what_two_processes_saved_of_a_data_mesh_goes_on_split(single, corpus, tmp_path):
    train(2, corpus, tmp_path, "DDP,data=8", "num_steps=4", "optim.total_steps=12")
    train(2, corpus, tmp_path, "ZERO3,data=1,fsdp=8")
    equal(losses(tmp_path), losses(single))


def test_processes_whose_rows_are_not_one_piece(single, corpus, tmp_path):
    """As on most TPU slices, where the chips of a host are a square in the torus."""
    train(2, corpus, tmp_path, "ZERO3,data=4,fsdp=2", APART)
    equal(losses(tmp_path), losses(single))
    equal(losses(tmp_path, "validation"), losses(single, "validation"))


@pytest.mark.parametrize(
    ("devices", "table"), [(8, "DP_PP_TP,data=1,stage=2,fsdp=2,tensor=2"), (4, "DDP,data=1,sequence=4")]
)
def test_pipelines_and_rings_over_two_processes(corpus, tmp_path, devices, table):
    """Each process has one stage of the pipeline, and half of every sequence of the ring."""
    for processes in (1, 2):
        train(processes, corpus, tmp_path / str(processes), table, "num_steps=4", "eval_every=4", devices=devices)
    equal(losses(tmp_path / "2"), losses(tmp_path / "1"))
    equal(losses(tmp_path / "2", "validation"), losses(tmp_path / "1", "validation"))


FEEDING = {
    ZERO: ((range(4), range(4, 8)), ()),
    "TP,data=1,tensor=8": ((range(8), range(8)), ()),  # each row is on all devices, so both processes feed it
    "ZERO3,data=4,fsdp=2": ((range(0, 8, 2), range(1, 8, 2)), (APART,)),
}


@pytest.mark.parametrize("table", FEEDING)
def test_a_process_reads_its_rows_alone(corpus, tmp_path, table):
    pieces, mesh = FEEDING[table]
    flags = lambda *overrides: (*config(corpus, table, "model.num_heads=8", *overrides), f"--out={tmp_path}/")
    ended(begin(1, "tests.training.feeding", *flags()) + begin(2, "tests.training.feeding", *flags(*mesh)))
    (alone,), parts = ([json.loads((tmp_path / f"{n}.{i}").read_text()) for i in range(n)] for n in (1, 2))
    assert [*range(8)] == alone["rows"]
    for part, rows in zip(parts, pieces, strict=True):
        assert part["rows"] == [*rows]
        assert part["read"] == [alone["read"][row] for row in rows]
        assert part["tokens"] == [alone["tokens"][row] for row in rows]
        assert part["sum"] == alone["sum"]  # of the global batch, on the devices
