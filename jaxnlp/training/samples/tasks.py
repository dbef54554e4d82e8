"""Report of a finished run on a labelled task: its metrics beside a baseline, and examples with predictions."""

import collections
import itertools
import math
from typing import Any

import numpy as np

from jaxnlp.evals.predictions import answers

NUM_SHOWN = 6
WIDTH = 100  # characters of a text


def task_table(found: dict[str, float], store: Any, tokenizer: Any, data: Any) -> tuple[dict[str, float], list[str]]:
    """(a baseline's loss by name, lines of a table that compares the model with it).

    The baseline knows only the frequency of each answer in this split. Its loss is their entropy, and its accuracy that
    of the most frequent answer. For numbers it predicts their mean, and its loss is their variance.
    """
    task = data.task
    targets = task.label_keys(store.encoded(task, tokenizer, data.seq_len))
    if isinstance(targets[0], float):
        name, loss, share, unit = "always the mean", float(np.var(targets)), None, "squared error"
    else:
        counts = np.asarray(list(collections.Counter(targets).values()))
        shares = counts / counts.sum()
        loss, share, unit = float(-(shares * np.log(shares)).sum()), float(shares.max()), "nats"
        name = "always the most frequent answer"
    rows = [("this model", found["loss"], found.get("accuracy")), (name, loss, share)]
    out = [f"validation split, {len(store.records):,} records, {found['tokens']:,.0f} {task.unit}:", ""]
    out.append(f"  {'':34}{unit:>14}" + ("" if share is None else f"{'accuracy':>12}"))
    out += [f"  {row:34}{x:>14.4f}" + ("" if right is None else f"{right:>12.2%}") for row, x, right in rows]
    rest = sorted(set(found) - {"loss", "accuracy", "tokens", "perplexity"})
    if rest:
        out += ["", "  " + ", ".join(f"{key.replace('_', ' ')} {found[key]:.4f}" for key in rest)]
    return {name: loss}, out


def task_samples(program: Any, params: Any, tokenizer: Any, store: Any) -> list[str]:
    """Lines to print: evenly spaced records of the split, with the reference and the model's prediction.

    With several processes all must call it: the model runs on the full mesh.
    """
    data = program.experiment.data
    task = data.task
    examples = store.encoded(task, tokenizer, data.seq_len)
    spaced = {round(i * (len(store.records) - 1) / max(1, NUM_SHOWN - 1)) for i in range(NUM_SHOWN)}
    chosen = [example for example in examples if example.record in spaced]
    numbers = [number for number, _ in itertools.groupby(example.record for example in chosen)]
    out = ["", "validation examples, what is right and what the model says:"]
    for number, answer in zip(numbers, answers(program, params, tokenizer, store.records, chosen), strict=True):
        record = store.records[number]
        text = task.display(record)
        out.append("")
        out.append(f"  | {text if len(text) <= WIDTH else text[: WIDTH - 3] + '...'}")
        out.append(f"  {verdict(task.reference(record), answer)}")
    return out


def verdict(gold: dict[str, Any], answer: dict[str, Any]) -> str:
    """One line with the reference, and the model's answer where it differs."""
    (key, right), said = next(iter(gold.items())), answer[next(iter(gold))]
    if isinstance(right, list):
        wrong = [f"{i + 1}: {a} > {b}" for i, (a, b) in enumerate(zip(right, said, strict=True)) if a != b]
        return f"{key}: {len(right) - len(wrong)} of {len(right)} right" + (
            f"; {', '.join(wrong[:8])}" if wrong else ""
        )
    if isinstance(right, float):
        return f"{key}: {right:.3g} > {said:.3g}"
    shares = answer.get("probabilities")
    share = f" ({max(shares.values() if isinstance(shares, dict) else shares):.0%})" if shares else ""
    mark = "right" if right == said else "wrong"
    return f"{mark:6} {key} {_quoted(right)}" + (share if right == said else f" > {_quoted(said)}{share}")


def _quoted(value: Any) -> str:
    return "none" if value == "" or (isinstance(value, float) and math.isnan(value)) else str(value)
