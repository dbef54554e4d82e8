"""The ZeRO paper's memory table; `tests/docs_figures.py` checks the figures in the docs."""

import json

import pytest

from tests import tpu
from tests.entry import run, start

PAPER = {"DDP": 120e9, "ZERO1": 31.4e9, "ZERO2": 16.6e9, "ZERO3": 1.9e9}  # arXiv:1910.02054, figure 1


@pytest.fixture(scope="module")
def memory_table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    done = run("experiments.bench.zero_memory", f"--json={folder / 'zero.json'}", f"--out={folder / 'zero.png'}")
    assert done.code == 0, done.err
    assert (folder / "zero.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return json.loads((folder / "zero.json").read_text())


def total(parts: dict[str, list[int]]) -> int:
    return sum(max(counts) for counts in parts.values())


@pytest.mark.parametrize("stage", PAPER)
def test_the_papers_table(memory_table, stage):
    large = memory_table["7.5B"]
    assert total(large["bytes"][stage]) == pytest.approx(PAPER[stage], rel=0.03)
    assert total(large["bytes"][stage]) == pytest.approx(large["formula"][stage], rel=0.03)


def test_each_device_holds_its_share_of_what_a_stage_splits(memory_table):
    tiny = memory_table["tiny"]["bytes"]
    split = {"ZERO1": {"optimizer state"}, "ZERO2": {"optimizer state", "gradients"}, "ZERO3": set(tiny["DDP"])}
    for stage, parts in split.items():
        for part, counts in tiny[stage].items():
            assert len(counts) == 8 and len(set(counts)) == 1, (stage, part)
            ways = tiny["DDP"][part][0] / counts[0]
            assert (7.5 < ways <= 8) if part in parts else ways == 1, (stage, part)


@pytest.mark.full
def test_the_last_stage_compiles_to_the_papers_figure_and_the_first_to_nothing(tmp_path):
    flags = ("--table=ZERO3", "--ladder=DDP@v5p:4x4x4", f"--json={tmp_path / 'zero.json'}")
    done = start("experiments.bench.zero_compiled", *flags, env=tpu.environment()).wait(1200)
    assert done.code == 0, done.err
    assert "DDP on v5p:4x4x4 (102 GB per chip): does not fit" in done.out
    row = json.loads((tmp_path / "zero.json").read_text())["table"]["ZERO3"]
    assert row["states"] == pytest.approx(PAPER["ZERO3"], rel=0.03)
    assert row["states"] == pytest.approx(row["formula"], rel=0.03)
    assert row["states"] < row["peak"] < 2 * row["states"]


def test_a_wrong_rung_is_told():
    done = run("experiments.bench.zero_compiled", "--ladder=ZERO4@v5e:8x8")
    assert (done.code, done.out) == (2, "") and done.err.startswith("error: --ladder=ZERO4@v5e:8x8: expected STAGE@TOP")
