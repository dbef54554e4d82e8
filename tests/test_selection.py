"""Test selection in CI: the tests that a change touches, within a budget of seconds."""

import pytest

from tests import selection
from tests.durations import PIECE, SPREAD, estimates, groups, ordered
from tests.import_graph import ROOT, distances, uses
from tests.selection import choose
from tests.tiers import FAST


def test_a_file_uses_what_it_imports_and_what_it_names():
    graph = uses()
    assert "jaxnlp/sharding/rules.py" in graph["tests/training/test_meshes.py"]
    assert "experiments/train.py" in graph["tests/experiments/test_training.py"]  # an entry point by name
    assert "tests/training/meshed.py" in graph["tests/jobs.py"]  # a path in parts
    assert "configs/bert/finetune.py" in graph["tests/experiments/test_entry_points.py"]  # in a folder


def test_a_change_touches_tests_at_any_distance_and_no_others():
    near = distances({"jaxnlp/nn/ring.py"})
    assert near["jaxnlp/nn/ring.py"] == 0 and near["tests/nn/test_ring.py"] == 1
    assert near["tests/training/test_processes.py"] > 1  # through a config named in a string
    assert "tests/data/test_tokenizer.py" not in near
    assert distances({"docs/data.md"}) == {}
    everything = distances({"pyproject.toml"})
    assert {file for file in uses() if file.startswith("tests/")} <= everything.keys()


def test_every_test_file_is_in_the_graph():
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")} <= uses().keys()


@pytest.fixture
def slow(monkeypatch) -> list[str]:
    monkeypatch.setattr(selection, "TOUCHED", 750.0)
    monkeypatch.setattr(selection, "ROTATING", 100.0)
    files = ("tests/nn/test_ring.py", "tests/training/test_meshes.py", "tests/data/test_tokenizer.py")
    return [f"{file}::test[{i}]" for file in files for i in range(100)]


def test_the_nearest_touched_tests_are_taken_first_and_the_rest_rotates(slow):
    seconds, near = dict.fromkeys(slow, 5.0), {"tests/training/test_meshes.py": 3, "tests/nn/test_ring.py": 1}
    touched, rotating = choose(slow, near, "a", seconds)
    assert len(touched) == 150 and len(rotating) == 20
    assert {test for test in slow if "test_ring" in test} <= {*touched}
    assert not {*touched} & {*rotating}
    assert choose(slow, near, "a", seconds) == (touched, rotating)
    assert choose(slow, near, "b", seconds)[1] != rotating


def test_every_slow_test_has_its_turn_within_a_few_landings(slow):
    seconds = dict.fromkeys(slow, 5.0)  # 170 of the 300 fit, as in the budget of a change that touches nothing
    seen, after = set(), []
    for commit in range(8):
        seen |= {*choose(slow, {}, str(commit), seconds)[1]}
        after.append(len(seen))
    assert after[0] == 170 and after[3] > 0.95 * len(slow) and seen == {*slow}


def test_a_test_that_does_not_fit_leaves_its_place_to_shorter_ones(slow):
    seconds = {test: 700.0 if test.endswith("[7]") else 5.0 for test in slow}
    for commit in "abc":
        rotating = choose(slow, {}, commit, seconds)[1]
        assert 845 <= sum(seconds[test] for test in rotating) <= 850


def test_the_longest_group_comes_first_and_groups_do_not_depend_on_the_order():
    tests = [*(f"a.py::{i}" for i in range(4)), *(f"{SPREAD[0]}::{i}" for i in range(4)), "c.py::0"]
    known = {**dict.fromkeys(tests[:4], 2.0), **dict.fromkeys(tests[4:8], 0.75 * PIECE), "c.py": 9.0}
    first, group_of = ordered(tests, known)
    assert first[-4:] == tests[:4] and first[-5] == "c.py::0"
    assert len({group_of[test] for test in tests[:4]}) == 1
    assert len({group_of[test] for test in tests[4:8]}) > 1
    assert ordered(first, known) == (first, group_of)
    assert groups(tests, estimates(tests, {})).keys() == {*tests}


def test_every_test_whose_cases_are_divided_is_there():
    for name in FAST:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(), name
