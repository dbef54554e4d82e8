"""Tables and a figure of the PEFT benchmarks. The tables are written into docs/measurements/peft.md."""

import statistics
from typing import Any

from experiments.bench.harness import quartiles
from jaxnlp.errors import UserError
from jaxnlp.paths import local

RATES = {
    "full": (1e-4, 3e-4, 1e-3),
    "lora": (1e-3, 3e-3, 1e-2),
    "houlsby": (1e-3, 3e-3, 1e-2),
    "pfeiffer": (1e-3, 3e-3, 1e-2),
    "bitfit": (3e-3, 1e-2),
    "ia3": (1e-2, 3e-2),
    "prompt": (1e-2, 1e-1),
    "prefix": (1e-2, 3e-2),
    "head": (3e-3, 3e-2),
}
NAMES = {
    "full": "full fine-tuning",
    "lora": "LoRA",
    "houlsby": "adapters (Houlsby)",
    "pfeiffer": "adapters (Pfeiffer)",
    "bitfit": "BitFit",
    "ia3": "(IA)^3",
    "prompt": "prompt tuning",
    "prefix": "prefix (P-tuning v2)",
    "head": "head alone",
}


def searched(results: dict[str, Any]) -> str:
    """The accuracies of the search as text, with the best of each method marked."""
    lines = []
    for method, rates in results["search"].items():
        best = max(rates, key=rates.__getitem__)
        cells = (f"{float(r):g}: {accuracy:.1%}{' *' if r == best else ''}" for r, accuracy in rates.items())
        lines.append(f"{method:10}{'   '.join(cells)}")
    return "\n".join(lines)


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per method with runs: parameter counts, accuracies over the seeds and seconds per step.

    Rows also have the ratios of wall-clock and CPU time to full fine-tuning, or None if it was not measured.
    """
    table_rows = []
    for method in (m for m in RATES if m in results["runs"] and m in results["costs"]):
        cost, full, runs = results["costs"][method], results["costs"].get("full"), results["runs"][method]
        accuracies = [run["accuracy"] for run in runs.values()]
        row = {"name": NAMES[method], "trained": cost["trained"], "share": cost["trained"] / cost["total"]}
        row |= {"accuracies": accuracies, "mean": statistics.mean(accuracies), "peak": cost["peak"]}
        row["seconds"] = statistics.median(cost["seconds"])
        for key in ("seconds", "cpu seconds"):
            row[f"{key} over full"] = full and median_ratio(cost[key], full[key])
        table_rows.append(row | {"rate": next(iter(runs.values()))["rate"]})
    return table_rows


def median_ratio(seconds: list[float], base: list[float]) -> float:
    """The median over rounds of paired ratios."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


def quality_table(results: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    names = ["method", "trained", "of the model", "runs", "test accuracy (lowest to highest)"]
    names += ["step", "over full", "CPU time over full", "peak memory", "learning rate"]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for row in rows(results):
        low, high = min(row["accuracies"]), max(row["accuracies"])
        cells = [row["name"], f"{row['trained']:,}", f"{row['share']:.2%}", str(len(row["accuracies"]))]
        cells += [f"{row['mean']:.1%} ({low:.1%} to {high:.1%})", f"{1e3 * row['seconds']:,.0f} ms"]
        ratios = (row["seconds over full"], row["cpu seconds over full"])
        cells += [f"{ratio:.2f}" if ratio else "-" for ratio in ratios]
        cells += [f"{row['peak'] / 1e6:,.0f} MB", f"{row['rate']:g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(results: dict[str, Any]) -> Any:
    """A chart with one row per method, sorted by trained parameters: a ring per seed's accuracy, a dot for the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.9), dpi=100)
    axis = figure.subplots()
    by_size = sorted(rows(results), key=lambda row: row["trained"])
    for place, row in enumerate(by_size):
        accuracies = [100 * accuracy for accuracy in row["accuracies"]]
        axis.plot([min(accuracies), max(accuracies)], [place] * 2, color="#7ea6d9", lw=2.5, zorder=1)
        axis.plot(accuracies, [place] * len(accuracies), "o", color="#7ea6d9", mfc="white", ms=5, zorder=2)
        axis.plot(100 * row["mean"], place, "o", color="#2f5d9b", ms=7, zorder=3)
    axis.set_yticks(range(len(by_size)), [f"{row['name']}, {row['share']:.2%}" for row in by_size])
    axis.set_xlabel("test accuracy, %: each seed, and their mean", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="0.9", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Which packages is a docstring from? By method, and the share of the model that it trains",
        x=0.02,
        ha="left",
        fontsize=10,
        weight="bold",
    )
    figure.tight_layout()
    return figure


def latency_table(results: dict[str, Any]) -> str:
    """Milliseconds per token, and ratios to the base by wall-clock and CPU time, as a Markdown table."""
    lines = ["| | ms a token | over the base | CPU time over the base |", "|---|---|---|---|"]
    for name, walls in results["seconds"].items():
        milliseconds = 1e3 * statistics.median(walls) / results["new"]
        lines.append(
            f"| {name} | {milliseconds:.2f} | {over(results['seconds'], name)} | {over(results['cpu seconds'], name)} |"
        )
    return "\n".join(lines)


def over(seconds: dict[str, list[float]], name: str) -> str:
    """The median of paired ratios to the base, with quartiles."""
    ratios = [a / b for a, b in zip(seconds[name], seconds["base"], strict=True)]
    low, high = quartiles(ratios)
    return f"{statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}]"


def into_page(path: str, name: str, text: str) -> None:
    """Inserts text between the markers `name` of a page. Raises UserError if the page has no such markers."""
    page, begin, end = local(path), f"<!-- {name} -->", f"<!-- end of {name} -->"
    try:
        before, tail = page.read_text().split(begin)
        after = tail.split(end)[1]
        page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
    except (OSError, ValueError, IndexError) as e:
        raise UserError(f"--page={path}: markers {begin} and {end} are missing ({e})") from None
