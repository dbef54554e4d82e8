"""Runs mutants and prints a table; exit status 1 if one survives, no longer applies, or its tests fail without it."""

import argparse
import collections
import json
import pathlib
import sys
import tempfile

from tests.mutants import runner
from tests.mutants.mutant import ROOT, TIERS, Mutant, StaleMutant, load, select


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="ids or rooms, separated by commas, as nn,training/step")
    parser.add_argument("--tier", choices=TIERS, help="only mutants whose killing tests are of this tier")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (1)")
    parser.add_argument("--out", help="a JSON file for the results")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--no-clean-check", action="store_true", help="do not run the killing tests without mutants")
    arguments = parser.parse_args()
    only = [name for name in arguments.only.split(",") if name]
    mutants = select(load(), only, arguments.tier)
    if arguments.list:
        for m in mutants:
            print(f"{m.id:<48} {m.tier:<5} jaxnlp/{m.file}: {m.fault}")
        return 0
    if problems := stale(mutants):
        print("\n".join(problems), file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = pathlib.Path(name)
        if not arguments.no_clean_check:
            cache = folder / "cache"
            cache.mkdir()
            if problems := runner.check_clean(mutants, runner.copy_tree(folder / "clean"), cache):
                print("\n".join(problems), file=sys.stderr)
                return 1
        results = runner.run_all(mutants, folder, arguments.jobs, lambda result: print(row(result), flush=True))
    print(summary(results))
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps([as_json(r) for r in results], indent=1) + "\n")
    return int(any(r.status != runner.KILLED for r in results))


def stale(mutants: list[Mutant]) -> list[str]:
    """A line for each mutant that no longer applies."""
    problems = []
    for m in mutants:
        try:
            m.applied((ROOT / "jaxnlp" / m.file).read_text())
        except (OSError, StaleMutant) as e:
            problems.append(str(e))
    return problems


def row(result: runner.Result) -> str:
    m = result.mutant
    outcome = result.killed_by or f"{result.status.upper()}: {result.detail}"
    return f"{m.id:<48} {m.tier:<5} {result.seconds:6.1f} s  {outcome}"


def summary(results: list[runner.Result]) -> str:
    """Mutants by room: how many there are, and how many the fast and the slow tests killed."""
    counts = collections.Counter((r.mutant.room, r.mutant.tier if r.status == runner.KILLED else "") for r in results)
    lines = ["", f"{'room':<24} {'mutants':>8} {'fast':>6} {'slow':>6} {'alive':>6}"]
    for room in sorted({r.mutant.room for r in results}):
        numbers = [counts[room, kind] for kind in ("fast", "slow", "")]
        lines.append(f"{room:<24} {sum(numbers):>8} {numbers[0]:>6} {numbers[1]:>6} {numbers[2]:>6}")
    total = [sum(counts[room, kind] for room, k in list(counts) if k == kind) for kind in ("fast", "slow", "")]
    lines.append(f"{'all':<24} {sum(total):>8} {total[0]:>6} {total[1]:>6} {total[2]:>6}")
    return "\n".join(lines)


def as_json(result: runner.Result) -> dict[str, object]:
    m = result.mutant
    return {
        "id": m.id,
        "file": f"jaxnlp/{m.file}",
        "fault": m.fault,
        "tier": m.tier,
        "status": result.status,
        "killed_by": result.killed_by,
        "seconds": round(result.seconds, 1),
        "detail": result.detail,
    }


if __name__ == "__main__":
    sys.exit(main())
