"""A mutant: one fault in one file of jaxnlp, and the tests that must fail with it."""

import ast
import dataclasses
import importlib
import pathlib
import pkgutil

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIERS = ("fast", "slow")


class StaleMutant(Exception):
    """A mutant whose snippet is not in its file exactly once, or whose replacement is not Python."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault.

    id: "room/what-is-wrong". file: path below jaxnlp/. old: a snippet that occurs exactly once in the file. new: its
    replacement. fault: what is wrong with it, in a line. tests: node ids of which at least one must fail. tier: "slow"
    if these tests have the mark `slow`, else "fast"; no mutant is left to tests with the mark `full`.
    """

    id: str
    file: str
    old: str
    new: str
    fault: str
    tests: tuple[str, ...]
    tier: str = "fast"

    @property
    def room(self) -> str:
        """The folder of the file, as "nn" or "training/step"; for a top-level module its name, as "optim"."""
        path = pathlib.PurePosixPath(self.file)
        return path.stem if path.parent == pathlib.PurePosixPath(".") else path.parent.as_posix()

    def applied(self, source: str) -> str:
        """The source of the file with the fault. Raises StaleMutant if the fault cannot be applied."""
        count = source.count(self.old)
        if count != 1:
            raise StaleMutant(f"{self.id}: its snippet occurs {count} times in jaxnlp/{self.file}, expected once")
        mutated = source.replace(self.old, self.new)
        try:
            same = ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source))
        except SyntaxError as e:
            raise StaleMutant(f"{self.id}: jaxnlp/{self.file} is not Python with it ({e})") from None
        if same:
            raise StaleMutant(f"{self.id}: jaxnlp/{self.file} means the same with it")
        return mutated


def load() -> list[Mutant]:
    """All mutants, by the files of `rooms/` in alphabetical order."""
    rooms = importlib.import_module("tests.mutants.rooms")
    names = sorted(info.name for info in pkgutil.iter_modules(rooms.__path__))
    modules = [importlib.import_module(f"tests.mutants.rooms.{name}") for name in names]
    return [mutant for module in modules for mutant in module.MUTANTS]


def select(mutants: list[Mutant], only: list[str], tier: str | None) -> list[Mutant]:
    """The mutants of a tier whose id, room or outermost room is among `only` (empty: of all)."""
    known = {name for m in mutants for name in (m.id, m.room, m.room.split("/")[0])}
    for name in only:
        if name not in known:
            raise SystemExit(
                f"--only={name}: no such mutant or room; rooms are {', '.join(sorted({m.room for m in mutants}))}"
            )
    chosen = [m for m in mutants if not only or {m.id, m.room, m.room.split("/")[0]} & set(only)]
    return [m for m in chosen if tier is None or m.tier == tier]
