"""Every mutant applies and names existing tests, and every room has mutants. `make mutants` runs them."""

import ast
import collections

import pytest

from tests.mutants.mutant import ROOT, TIERS, Mutant, StaleMutant, load

MUTANTS = load()
AT_LEAST = 60


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.id)
def test_it_applies(mutant):
    mutant.applied((ROOT / "jaxnlp" / mutant.file).read_text())
    assert mutant.tier in TIERS and mutant.tests and mutant.fault


def test_ids_are_unique_and_begin_with_their_room():
    counts = collections.Counter(m.id for m in MUTANTS)
    assert [name for name, count in counts.items() if count > 1] == []
    assert [m.id for m in MUTANTS if not m.id.startswith(f"{m.room}/")] == []


def test_their_tests_are_there():
    functions = {}
    for test in sorted({test for m in MUTANTS for test in m.tests}):
        file, _, rest = test.partition("::")
        if file not in functions:
            tree = ast.parse((ROOT / file).read_text())
            functions[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not rest or rest.partition("[")[0].split("::")[-1] in functions[file], f"{test}: no such test"


def test_there_are_enough_and_every_room_has_some():
    assert len(MUTANTS) >= AT_LEAST
    rooms = {m.room.split("/")[0] for m in MUTANTS} | {m.room for m in MUTANTS}
    package = ROOT / "jaxnlp"
    wanted = {path.parent.relative_to(package).as_posix() for path in package.glob("*/*.py")} - set()
    wanted |= {
        "optim",
        "config",
        "cli",
        "training/step",
        "training/run_folder",
        "training/init",
        "data/text",
        "data/tasks",
    }
    assert sorted(wanted - rooms) == [], "rooms without a mutant: add some to tests/mutants/rooms/"


def test_a_stale_mutant_is_an_error():
    mutant = Mutant(
        id="nn/x", file="nn/x.py", old="a + b", new="a - b", fault="minus", tests=("tests/nn/test_masks.py",)
    )
    assert mutant.applied("c = a + b\n") == "c = a - b\n"
    for source, message in (("c = b + a\n", "0 times"), ("c = a + b\nd = a + b\n", "2 times")):
        with pytest.raises(StaleMutant, match=message):
            mutant.applied(source)
    with pytest.raises(StaleMutant, match="means the same"):
        mutant.applied("# a + b\n")
