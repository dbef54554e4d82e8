"""Runs mutants in copies of the repository, one pytest process for each.

The working tree is never touched. Each worker has a copy of its own, in which it writes one mutated file at a time.
The processes are forks of a server that has imported JAX, torch and the like, but nothing of jaxnlp: imports would take
longer than most of the tests. Compiled programs come from the compile cache, whose keys are the programs themselves.
Tokenized text is cached by its source, not by the code that made it: so each mutant starts from the cache that the
clean run left, or from an empty one where the fault is in jaxnlp/data/.
"""

import concurrent.futures
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import pathlib
import queue
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import tests.conftest  # noqa: F401  sets the environment in which JAX is imported below
from tests.mutants.mutant import ROOT, Mutant

COPIED = ("jaxnlp", "tests", "experiments", "configs", "docs", "colab", "README.md", "Makefile", "pyproject.toml")
PRELOAD = [
    *("jax", "flax.linen", "optax", "orbax.checkpoint", "grain", "ml_collections.config_flags", "rich.progress"),
    *("torch", "peft", *(f"transformers.models.{m}.modeling_{m}" for m in ("gpt2", "bert", "llama", "t5"))),
]
TIMEOUT = 900  # seconds for the tests of one mutant
CLEAN_TIMEOUT = 7200  # seconds for the tests of all mutants, without one

KILLED, SURVIVED, BROKEN, TIMED_OUT = "killed", "survived", "broken", "timed out"


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a mutant. killed_by: the test that failed. detail: why it was not killed."""

    mutant: Mutant
    status: str
    killed_by: str | None
    seconds: float
    detail: str = ""


@dataclasses.dataclass(eq=False)  # pytest needs hashable plugins
class Outcomes:
    """A pytest plugin that collects the outcome of each test by its node id, and what could not be collected."""

    tests: dict[str, str] = dataclasses.field(default_factory=dict)
    broken: list[str] = dataclasses.field(default_factory=list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.tests.get(report.nodeid) != "failed":
            self.tests[report.nodeid] = report.outcome

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken.append(f"{report.nodeid}: {report.longreprtext.strip().splitlines()[-1]}")


def copy_tree(target: pathlib.Path) -> pathlib.Path:
    """Copies the part of the working tree that tests need."""
    target.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy2(source, target / name)
    return target


def run_tests(
    tree: pathlib.Path, cache: pathlib.Path, arguments: Sequence[str], timeout: float = TIMEOUT
) -> dict[str, Any]:
    """Runs pytest in a copy of the repository. Returns "tests" and "broken" as `Outcomes`, "log" and "timed_out"."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    (tree / "outcomes.json").unlink(missing_ok=True)
    process = context.Process(target=_pytest, args=(str(tree), str(cache), list(arguments)))
    process.start()
    process.join(timeout)
    timed_out = process.exitcode is None
    if timed_out and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)  # tests start processes of their own
        process.join()
    path = tree / "outcomes.json"
    outcomes = json.loads(path.read_text()) if path.exists() else {"tests": {}, "broken": []}
    return {**outcomes, "log": (tree / "log").read_text(), "timed_out": timed_out}


def _pytest(tree: str, cache: str, arguments: list[str]) -> None:
    """Runs in the forked process: pytest, with jaxnlp and the tests of the copied tree."""
    os.setsid()
    os.chdir(tree)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1), os.dup2(log, 2)
    os.makedirs("tmp", exist_ok=True)
    os.environ |= {"JAXNLP_CACHE": cache, "TMPDIR": f"{tree}/tmp"}
    tempfile.tempdir = None  # read TMPDIR again
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "jaxnlp")]:
        del sys.modules[name]
    sys.path[:] = [tree, *(path for path in sys.path if path not in ("", str(ROOT)))]
    outcomes = Outcomes()
    pytest.main(["-q", "-p", "no:cacheprovider", *arguments], plugins=[outcomes])
    pathlib.Path("outcomes.json").write_text(json.dumps(dataclasses.asdict(outcomes)))


def tier_options(tier: str) -> tuple[str, ...]:
    """The tests of this tier only, so that a mutant cannot claim a faster tier than its tests have."""
    return ("-m", "slow and not full" if tier == "slow" else "not slow and not full")


def check_clean(mutants: Sequence[Mutant], tree: pathlib.Path, cache: pathlib.Path) -> list[str]:
    """Problems of the killing tests in the clean tree: tests that fail, or are not in the stated tier."""
    problems: list[str] = []
    for tier in sorted({m.tier for m in mutants}):
        of_tier = [m for m in mutants if m.tier == tier]
        tests = sorted({test for m in of_tier for test in m.tests})
        report = run_tests(tree, cache, [*tier_options(tier), *tests], CLEAN_TIMEOUT)
        problems += [f"{name}: fails without a mutant" for name, x in report["tests"].items() if x == "failed"]
        problems += report["broken"]
        if report["timed_out"]:
            problems.append(f"the {tier} tests took more than {CLEAN_TIMEOUT} s")
        for m in of_tier:
            if not any(_matches(name, test) for name in report["tests"] for test in m.tests):
                problems.append(f"{m.id}: no {tier} test among {', '.join(m.tests)}")
        if not report["tests"]:
            problems.append(report["log"][-2000:])
    return problems


def _matches(name: str, test: str) -> bool:
    """Whether a test that ran is the one named, or one of its parameters, or of that file."""
    return name == test or name.startswith((f"{test}[", f"{test}::"))


def run_mutant(mutant: Mutant, tree: pathlib.Path, clean_cache: pathlib.Path) -> Result:
    """Applies a mutant in a copy of the repository, runs its tests until one fails, and reverts it."""
    path, cache = tree / "jaxnlp" / mutant.file, tree / "cache"
    source = path.read_text()
    if mutant.file.startswith("data/"):
        cache.mkdir()
    else:
        shutil.copytree(clean_cache, cache, copy_function=os.link)
    begun = time.monotonic()
    try:
        _write(path, mutant.applied(source))
        report = run_tests(tree, cache, ["-x", *tier_options(mutant.tier), *mutant.tests])
    finally:
        _write(path, source)
        shutil.rmtree(cache)
        shutil.rmtree(tree / "tmp", ignore_errors=True)
    seconds = time.monotonic() - begun
    failed = next((name for name, outcome in report["tests"].items() if outcome == "failed"), None)
    if report["timed_out"]:
        return Result(mutant, TIMED_OUT, None, seconds, f"its tests took more than {TIMEOUT} s")
    if failed is not None:
        return Result(mutant, KILLED, failed, seconds)
    if report["broken"] or not report["tests"]:  # a fault that prevents collection proves nothing
        return Result(mutant, BROKEN, None, seconds, "; ".join(report["broken"]) or report["log"][-500:])
    return Result(mutant, SURVIVED, None, seconds, f"{len(report['tests'])} tests passed")


def _write(path: pathlib.Path, text: str) -> None:
    """Writes a module and removes its bytecode, which Python would reuse if size and second were the same."""
    path.write_text(text)
    pathlib.Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def run_all(
    mutants: Sequence[Mutant], folder: pathlib.Path, jobs: int, report: Callable[[Result], None]
) -> list[Result]:
    """All mutants, `jobs` at a time, in order of their first test's file, so that neighbours share what is cached."""
    trees: queue.Queue[pathlib.Path] = queue.Queue()
    for i in range(jobs):
        trees.put(copy_tree(folder / f"tree_{i}"))
    clean_cache = folder / "cache"
    clean_cache.mkdir(exist_ok=True)

    def run(mutant: Mutant) -> Result:
        tree = trees.get()
        try:
            result = run_mutant(mutant, tree, clean_cache)
        finally:
            trees.put(tree)
        report(result)
        return result

    ordered = sorted(mutants, key=lambda m: m.tests[0])
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(run, ordered))
