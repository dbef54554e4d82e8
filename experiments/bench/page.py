"""Writes the tables of docs/measurements/performance_tables.md from docs/measurements/performance.json."""

import pathlib
import textwrap
from typing import Any

from jaxnlp import strict_json

JSON = pathlib.Path("docs/measurements/performance.json")
PAGE = pathlib.Path("docs/measurements/performance_tables.md")
BEGIN, END = "<!-- tables: written by `make bench` from performance.json -->", "<!-- end of tables -->"


def save(results: dict[str, Any]) -> None:
    """Merges suites into the JSON file and rewrites the tables of the page."""
    suites = strict_json.loads(JSON.read_text()) if JSON.exists() else {}
    suites.update(results)
    JSON.write_text(strict_json.dumps(suites, indent=1) + "\n")
    text = PAGE.read_text()
    before, tail = text.split(BEGIN)
    after = tail.split(END)[1]
    tables = "\n\n".join(markdown(suite) for suite in suites.values())
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


def columns(suite: dict[str, Any]) -> list[str]:
    return sorted({key for row in suite["rows"] for key in row if key.startswith("over ")}, key=lambda k: k)


def cells(row: dict[str, Any], suite: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["name"], f"failed: {row['error']}"]
    texts = [row["name"], f"{row['ms']:,.1f}", f"{row['rate']:,.0f}"]
    for key in columns(suite):
        ratio = row.get(key)
        texts.append(f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "-")
    texts.append(f"{row['cores']:.2f}" if "cores" in row else "-")
    texts.append(f"{row['of_limit']:.0%}" if "of_limit" in row else "-")
    return texts


def header(suite: dict[str, Any]) -> list[str]:
    speed = [f"speed over {key.removeprefix('over ')}" for key in columns(suite)]
    return ["contender", "ms", suite["unit"], *speed, "cores busy", "of GEMM limit"]


def markdown(suite: dict[str, Any]) -> str:
    """A suite as a Markdown section with a table."""
    lines = [f"## {suite['title']}", "", textwrap.fill(suite["note"], 120, break_on_hyphens=False), ""]
    if "rows" in suite:
        head = header(suite)
        lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(cells(row, suite))} |" for row in suite["rows"]]
    return "\n".join(lines)


def text(suite: dict[str, Any]) -> str:
    """A suite as lines for a terminal."""
    lines = ["", suite["title"], suite["note"]]
    if "rows" in suite:
        table = [header(suite), *(cells(row, suite) for row in suite["rows"])]
        widths = [max(len(row[i]) for row in table if len(row) > i) for i in range(len(table[0]))]
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=False)) for row in table]
    return "\n".join(lines)
