"""The ZeRO paper's table of memory, and the figures that docs/measurements/parallelism.md shows of it."""

import json

import pytest

from tests import tpu
from tests.entry import ROOT, run, start

PAPER = {"DDP": 120e9, "ZERO1": 31.4e9, "ZERO2": 16.6e9, "ZERO3": 1.9e9}  # arXiv:1910.02054, figure 1


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    done = run("experiments.bench.zero_memory", f"--json={folder / 'zero.json'}", f"--out={folder / 'zero.png'}")
    assert done.code == 0, done.err
    assert (folder / "zero.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return json.loads((folder / "zero.json").read_text())


def total(parts: dict[str, list[int]]) -> int:
    return sum(max(counts) for counts in parts.values())


@pytest.mark.parametrize("stage", PAPER)
def test_the_papers_table(found, stage):
    large = found["7.5B"]
    assert total(large["bytes"][stage]) == pytest.approx(PAPER[stage], rel=0.03)
    assert total(large["bytes"][stage]) == pytest.approx(large["formula"][stage], rel=0.03)


def test_each_device_holds_its_share_of_what_a_stage_splits(found):
    tiny = found["tiny"]["bytes"]
    split = {"ZERO1": {"optimizer state"}, "ZERO2": {"optimizer state", "gradients"}, "ZERO3": set(tiny["DDP"])}
    for stage, parts in split.items():
        for part, counts in tiny[stage].items():
            assert len(counts) == 8 and len(set(counts)) == 1, (stage, part)
            ways = tiny["DDP"][part][0] / counts[0]
            assert (7.5 < ways <= 8) if part in parts else ways == 1, (stage, part)


@pytest.fixture(scope="module")
def compiled():
    return json.loads((ROOT / "docs" / "measurements" / "zero_compiled.json").read_text())


@pytest.mark.parametrize("stage", PAPER)
def test_the_papers_table_as_compiled(found, compiled, stage):
    row, parts = compiled["table"][stage], {part: max(of) for part, of in found["7.5B"]["bytes"][stage].items()}
    assert row["states"] == pytest.approx(PAPER[stage], rel=0.03)
    assert row["states"] == pytest.approx(row["formula"], rel=0.03)
    assert row["states"] == pytest.approx(sum(parts.values()), rel=2e-3)  # a batch, and what the compiler pads
    if stage != "DDP":
        assert row["gradients"] == pytest.approx(parts["gradients"], rel=2e-3)
        assert row["states"] < row["peak"] < row["states"] + 3e9  # no second copy of the parameters, 14.9 GB


def test_which_stage_fits_which_chip(compiled):
    fits = {rung: row["fits"] for rung, row in compiled["ladder"].items()}
    assert fits == {"DDP@v5p:4x4x4": False, "ZERO1@v6e:8x8": True, "ZERO2@v5e:8x8": False, "ZERO3@v5e:8x8": True}


@pytest.mark.full
def test_the_last_stage_compiles_to_the_papers_figure_and_the_first_to_nothing(tmp_path):
    flags = ("--table=ZERO3", "--ladder=DDP@v5p:4x4x4", f"--json={tmp_path / 'zero.json'}")
    done = start("experiments.bench.zero_compiled", *flags, env=tpu.environment()).wait(1200)
    assert done.code == 0, done.err
    assert "DDP on v5p:4x4x4 (102 GB a chip): does not fit" in done.out
    row = json.loads((tmp_path / "zero.json").read_text())["table"]["ZERO3"]
    assert row["states"] == pytest.approx(PAPER["ZERO3"], rel=0.03)
    assert row["states"] == pytest.approx(row["formula"], rel=0.03)
    assert row["states"] < row["peak"] < 2 * row["states"]


def test_a_wrong_rung_is_told():
    done = run("experiments.bench.zero_compiled", "--ladder=ZERO4@v5e:8x8")
    assert (done.code, done.out) == (2, "") and done.err.startswith("error: --ladder=ZERO4@v5e:8x8: expected STAGE@TOP")


def test_the_page_shows_what_is_measured(found):
    assert json.loads((ROOT / "docs" / "measurements" / "zero_memory.json").read_text()) == found, (
        "python -m experiments.bench.zero_memory"
    )
