"""The figures that the documentation shows are those that are stored, and what is stored agrees with what is computed.

Not a part of the tests: `make docs-figures` runs it, after a measurement is stored anew and in CI. A stored figure does
not change with the code, so that as a test it could not fail.
"""

import json
from typing import Any

import pytest

from configs.bert.tune_docstrings import METHODS
from experiments.bench import activations
from experiments.bench.lora_figures import compiled_table
from experiments.bench.peft_tables import RATES, latency_table, quality_table
from tests.entry import ROOT
from tests.experiments.test_zero_memory import PAPER, memory_table  # noqa: F401

FOLDER = ROOT / "docs" / "measurements"


def stored(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


# Memory of the stages of ZeRO


@pytest.mark.parametrize("stage", PAPER)
def test_the_papers_table_as_compiled(memory_table, stage):  # noqa: F811
    row = stored("zero_compiled")["table"][stage]
    parts = {part: max(of) for part, of in memory_table["7.5B"]["bytes"][stage].items()}
    assert row["states"] == pytest.approx(PAPER[stage], rel=0.03)
    assert row["states"] == pytest.approx(row["formula"], rel=0.03)
    assert row["states"] == pytest.approx(sum(parts.values()), rel=2e-3)  # a batch, and what the compiler pads
    if stage != "DDP":
        assert row["gradients"] == pytest.approx(parts["gradients"], rel=2e-3)
        assert row["states"] < row["peak"] < row["states"] + 3e9  # no second copy of the parameters, 14.9 GB


def test_which_stage_fits_which_chip():
    fits = {rung: row["fits"] for rung, row in stored("zero_compiled")["ladder"].items()}
    assert fits == {"DDP@v5p:4x4x4": False, "ZERO1@v6e:8x8": True, "ZERO2@v5e:8x8": False, "ZERO3@v5e:8x8": True}


def test_the_stored_memory_is_what_the_command_writes(memory_table):  # noqa: F811
    assert stored("zero_memory") == memory_table, "python -m experiments.bench.zero_memory"


# Activations of GPT-2 1.5B


def test_the_formulas_are_those_of_the_notes():
    figures = stored("activations")
    assert figures["formulas"] == activations.formulas(activations.experiment("none", 1).model)
    assert figures["formulas"]["ZeRO's rule of thumb"] == pytest.approx(60e9, rel=0.03)
    assert figures["model states"] == pytest.approx(16 * figures["parameters"], rel=1e-3)
    text = activations.table(figures)
    assert all(name in text for name in figures["formulas"])
    assert "nearest to 60.4 GB: remat='dots'" in text


def test_each_policy_keeps_less_than_the_one_before():
    rows = stored("activations")["rows"]
    by_policy = {row["policy"]: row for row in rows}
    sizes = [by_policy[policy]["activations"] for policy in ("none", "dots", "names", "full")]
    assert sizes == sorted(set(sizes), reverse=True)
    assert by_policy["offload"]["activations"] == pytest.approx(by_policy["full"]["activations"], rel=0.01)
    assert [row["policy"] for row in rows if row["host"]] == ["offload"]


# Parameter-efficient tuning


def test_the_page_shows_what_was_measured():
    page, quality = (FOLDER / "peft.md").read_text(), stored("peft_quality")
    assert quality_table(quality) in page
    assert set(quality["runs"]) == set(RATES) and len({len(runs) for runs in quality["runs"].values()}) == 1
    for name, figures in stored("peft_latency").items():
        assert latency_table(figures) in page, name


def test_the_configs_rates_are_those_that_the_search_found():
    quality = stored("peft_quality")
    for method, rates in quality["search"].items():
        assert METHODS[method][1] == float(max(rates, key=rates.__getitem__)), method
        assert {run["rate"] for run in quality["runs"][method].values()} == {METHODS[method][1]}, method


def test_a_lora_step_as_compiled_is_within_its_bars_and_on_the_page():
    page, figures = (FOLDER / "peft.md").read_text(), stored("lora_compiled")
    assert compiled_table(figures) in page
    assert f"{figures['memory ratio']:.2f} times the {figures['activations'] / 1e9:.2f} GB" in page
    assert f"{figures['flops ratio']:.2f} of full fine-tuning's operations" in page
    assert figures["memory ratio"] < 1.15 and figures["flops ratio"] < 0.7
    assert figures["LoRA"]["weight gradients"] == 0 < figures["full"]["weight gradients"]
