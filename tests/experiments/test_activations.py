"""What docs/measurements/parallelism.md says of the activations of GPT-2 1.5B: the stored figures, and their table."""

import json

import pytest

from experiments.bench import activations
from tests import tpu
from tests.entry import ROOT


@pytest.fixture(scope="module")
def found():
    return json.loads((ROOT / "docs" / "measurements" / "activations.json").read_text())


def test_the_formulas_are_those_of_the_notes(found):
    assert found["formulas"] == activations.formulas(activations.experiment("none", 1).model)
    assert found["formulas"]["ZeRO's rule of thumb"] == pytest.approx(60e9, rel=0.03)
    assert found["model states"] == pytest.approx(16 * found["parameters"], rel=1e-3)
    text = activations.table(found)
    assert all(name in text for name in found["formulas"])
    assert "nearest to 60.4 GB: remat='dots'" in text


def test_each_policy_keeps_less_than_the_one_before(found):
    kept = {row["policy"]: row for row in found["rows"]}
    sizes = [kept[policy]["activations"] for policy in ("none", "dots", "names", "full")]
    assert sizes == sorted(set(sizes), reverse=True)
    assert kept["offload"]["activations"] == pytest.approx(kept["full"]["activations"], rel=0.01)
    assert [row["policy"] for row in found["rows"] if row["host"]] == ["offload"]


@pytest.mark.slow
def test_as_compiled_for_a_tpu_none_keeps_more_than_dots_and_dots_more_than_full():
    found = tpu.compiled("tests.nn.compile_remat_tpu", "none", "dots", "full")
    sizes = [found[policy]["temporaries"] for policy in ("none", "dots", "full")]
    assert sizes[0] > 1.3 * sizes[1] and sizes[1] > 1.3 * sizes[2], found
