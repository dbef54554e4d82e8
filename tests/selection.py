"""A pytest plugin: `--ci` adds to the fast tests the slow ones that a change touches, and a share of the others.

Slow tests are taken within a budget of seconds as committed in `tests/durations.json`, so that the same commit runs the
same tests on any machine. First those that the change touches, the fewest imports away first; then the others, in an
order that is drawn anew for each commit, so that each runs every few landings.
"""

import hashlib
import os
import subprocess

import pytest

from tests.durations import COMMITTED, estimates, file_of, read
from tests.import_graph import FAR, ROOT, distances, uses

TOUCHED, ROTATING = 550.0, 450.0  # seconds of slow tests, on one worker with cold caches
FALLBACK = 10  # commits


def git(*args: str) -> str | None:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def base() -> str | None:
    """The commit to compare with: main before this change.

    In order: `$JAXNLP_CI_BASE`; where this commit is ahead of origin/main, their merge base; the first parent of a
    merge; the commit ten before this one, as a push is seldom longer. None without history, as in a shallow clone: then
    everything counts as touched.
    """
    revision = os.environ.get("JAXNLP_CI_BASE")
    if revision:
        return git("rev-parse", "--verify", f"{revision}^{{commit}}")
    head = git("rev-parse", "HEAD")
    merged = git("merge-base", "HEAD", "origin/main")
    if merged and merged != head:
        return merged
    if git("rev-parse", "--verify", "HEAD^2"):
        return git("rev-parse", "HEAD^1")
    return git("rev-parse", "--verify", f"HEAD~{FALLBACK}")


def changed_files(since: str | None) -> set[str] | None:
    """Paths that differ from a commit, uncommitted changes included."""
    if since is None:
        return None
    tracked, new = git("diff", "--name-only", "--no-renames", since), git("ls-files", "--others", "--exclude-standard")
    return None if tracked is None else {*tracked.splitlines(), *(new or "").splitlines()}


def choose(
    slow: list[str], near: dict[str, int], commit: str, seconds: dict[str, float]
) -> tuple[list[str], list[str]]:
    """(the slow tests that a change touches, as many as the budget allows; those of the rotating share).

    Args:
        near: the distance of each touched file. commit: draws the order among equals.
    """
    drawn = lambda test: hashlib.sha256(f"{commit} {test}".encode()).hexdigest()
    order = sorted((test for test in slow if file_of(test) in near), key=lambda t: (near[file_of(t)], drawn(t)))
    touched = _within(order, TOUCHED, seconds)
    others = sorted({*slow} - {*touched}, key=drawn)
    spare = TOUCHED - sum(seconds[test] for test in touched)
    return touched, _within(others, ROTATING + spare, seconds)


def _within(tests: list[str], budget: float, seconds: dict[str, float]) -> list[str]:
    """The tests in order, without those that exceed the remaining budget."""
    taken = []
    for test in tests:
        if seconds[test] <= budget:
            budget -= seconds[test]
            taken.append(test)
    return taken


class Selection:
    """Leaves out the slow tests that are not chosen, and prints which ran and why."""

    def __init__(self, config: pytest.Config):
        self.ran: set[str] = set()
        self.header = ""
        worker = getattr(config, "workerinput", None)
        if worker:
            self.commit, self.near = worker["ci"]
            return
        self.commit, since = git("rev-parse", "HEAD") or "", base()
        changed = changed_files(since)
        self.near = distances(changed) if changed is not None else dict.fromkeys(uses(), FAR)
        self.header = f"--ci: commit {self.commit[:10]}; "
        if changed is None:
            self.header += "there is no commit to compare with, so that everything counts as touched"
        else:
            self.header += f"{len(changed)} files changed since {since[:10] if since else ''}"

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node) -> None:
        node.workerinput["ci"] = (self.commit, self.near)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        candidates = sorted(item.nodeid for item in items if item.get_closest_marker("slow"))
        touched, rotating = choose(candidates, self.near, self.commit, estimates(candidates, read(COMMITTED)))
        left_out = {*candidates} - {*touched, *rotating}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
        items[:] = [item for item in items if item.nodeid not in left_out]

    def pytest_report_header(self) -> str:
        return self.header

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "slow" in report.keywords:
            self.ran.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if self.ran:
            terminalreporter.section("slow tests that ran, and why")
        for test in sorted(self.ran, key=lambda test: (self.near.get(file_of(test), FAR + 1), test)):
            distance = self.near.get(file_of(test))
            why = "its turn" if distance is None else "touched" if distance == FAR else f"{distance} imports away"
            terminalreporter.line(f"{why:16} {test}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ci", action="store_true", help="the fast tests, and the slow ones that CI chooses")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--ci"):
        config.pluginmanager.register(Selection(config), "jaxnlp-selection")
