"""A pytest plugin that orders tests and distributes them over workers by their durations, which it reports and stores.

Durations are CPU seconds of the worker and of the processes that it starts, which are comparable on a busy machine.
They are taken from this machine's last run (`durations.json` in the tests' cache folder), or, for a test that has not
run here, from `tests/durations.json`: seconds per file without the slow tests, and per slow test.
"""

import collections
import json
import os
import pathlib
import tempfile

import pytest

from tests.cache import FOLDER
from tests.cpu_time import cpu_seconds

COMMITTED = pathlib.Path(__file__).with_name("durations.json")
MEASURED = FOLDER / "durations.json"
DEFAULT = 0.5  # seconds assumed for a test without a measured duration
# A worker takes one file at a time, as its tests share fixtures and programs. These files take long and share little:
# they are cut into pieces of at most PIECE seconds.
SPREAD = (
    "tests/experiments/test_training.py",
    "tests/experiments/test_training_limits.py",
    "tests/interop/test_adapters.py",
    "tests/training/test_meshes.py",
    "tests/training/test_pipeline_step.py",
)
PIECE = 40.0
SLOWEST = 10


def read(path: pathlib.Path) -> dict[str, float]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def file_of(test: str) -> str:
    return test.partition("::")[0]


def estimates(tests: list[str], known: dict[str, float]) -> dict[str, float]:
    """Seconds of each test: measured, or else an equal share of its file's."""
    unknown = collections.Counter(file_of(test) for test in tests if test not in known)
    share = {file: known[file] / count if file in known else DEFAULT for file, count in unknown.items()}
    return {test: known[test] if test in known else share[file_of(test)] for test in tests}


def groups(tests: list[str], seconds: dict[str, float]) -> dict[str, str]:
    """The group of each test: its file or a piece of it. One worker runs a group."""
    filled: dict[str, float] = collections.defaultdict(float)
    result = {}
    for test in tests:
        file = file_of(test)
        filled[file] += seconds[test]
        piece = int((filled[file] - seconds[test] / 2) // PIECE) if file in SPREAD else 0
        result[test] = f"{file} {piece}"
    return result


def ordered(tests: list[str], known: dict[str, float]) -> tuple[list[str], dict[str, str]]:
    """(the tests, group after group, the longest first so that no worker is left with one at the end; their groups)."""
    seconds = estimates(tests, known)
    group_of = groups(sorted(tests), seconds)  # the same for any order of the same tests
    total: dict[str, float] = collections.defaultdict(float)
    for test in tests:
        total[group_of[test]] += seconds[test]
    return sorted(tests, key=lambda test: (-total[group_of[test]], group_of[test])), group_of


class Durations:
    """Orders the tests of this run by their stored durations, and measures them again."""

    def __init__(self, config: pytest.Config):
        self.worker = hasattr(config, "workerinput")
        self.known: dict[str, float] = (
            config.workerinput["durations"] if self.worker else {**read(COMMITTED), **read(MEASURED)}
        )
        self.measured: dict[str, float] = collections.defaultdict(float)
        self.slow: set[str] = set()
        self.clock = 0.0
        if hasattr(config.option, "loadscopereorder"):
            config.option.loadscopereorder = False  # xdist would order the groups by their numbers of tests

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node) -> None:
        node.workerinput["durations"] = self.known

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        tests, _ = ordered([item.nodeid for item in items], self.known)
        place = {test: i for i, test in enumerate(tests)}
        items.sort(key=lambda item: place[item.nodeid])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log):
        from xdist.scheduler import LoadScopeScheduling

        known = self.known

        class ByGroup(LoadScopeScheduling):
            group_of: dict[str, str] | None = None

            def _split_scope(self, nodeid: str) -> str:
                if self.group_of is None:
                    self.group_of = ordered(list(self.collection), known)[1]
                return self.group_of[nodeid]

        return ByGroup(config, log)

    def pytest_runtest_logstart(self) -> None:
        self.clock = cpu_seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        """Runs in the worker; the report is sent to the controller."""
        report = yield
        now = cpu_seconds()
        report.cpu_seconds, self.clock = now - self.clock, now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.measured[report.nodeid] += vars(report).get("cpu_seconds", 0.0)  # missing if the worker crashed
        if report.keywords.keys() & {"slow", "full"}:
            self.slow.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if self.measured and not self.worker:
            save(self.measured)
            if terminalreporter.config.getoption("--store-durations"):
                store(self.measured, self.slow)
            terminalreporter.section("CPU seconds")
            for line in table(self.measured):
                terminalreporter.line(line)


def save(measured: dict[str, float]) -> None:
    """Merges the seconds into the stored ones; atomic, since other runs may save at the same time."""
    MEASURED.parent.mkdir(parents=True, exist_ok=True)
    merged = {**read(MEASURED), **{test: round(seconds, 2) for test, seconds in measured.items()}}
    with tempfile.NamedTemporaryFile("w", dir=MEASURED.parent, delete=False) as file:
        json.dump(merged, file)
    os.replace(file.name, MEASURED)


def store(measured: dict[str, float], slow: set[str]) -> None:
    """Updates the committed estimates of the tests that ran; those of other tests stay."""
    result = collections.defaultdict(float)
    for test, seconds in measured.items():
        result[test if test in slow else file_of(test)] += seconds
    merged = {**read(COMMITTED), **{name: round(seconds, 1) for name, seconds in result.items()}}
    files = {file_of(name) for name in merged if (COMMITTED.parents[1] / file_of(name)).exists()}
    lines = [f"{json.dumps(name)}: {merged[name]}" for name in sorted(merged) if file_of(name) in files]
    COMMITTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def table(measured: dict[str, float]) -> list[str]:
    """Seconds by folder and the slowest tests, as lines."""
    folders: dict[str, list[float]] = collections.defaultdict(list)
    for test, seconds in measured.items():
        folders[file_of(test).rpartition("/")[0]].append(seconds)
    rows = sorted(folders.items(), key=lambda row: -sum(row[1]))
    lines = [f"{sum(seconds):9.1f}  {len(seconds):5} tests  {folder}" for folder, seconds in rows]
    lines += [f"{sum(measured.values()):9.1f}  {len(measured):5} tests  all", "the slowest:"]
    slowest = sorted(measured.items(), key=lambda row: -row[1])[:SLOWEST]
    return lines + [f"{seconds:9.1f}  {test}" for test, seconds in slowest]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store-durations", action="store_true", help="write the seconds to tests/durations.json")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Durations(config), "jaxnlp-durations")
