"""Records of a split beside the answers of a fine-tuned model, for the report of a run."""

import itertools
import math
from typing import TYPE_CHECKING, Any

from jaxnlp.data.samples import SampledModel

if TYPE_CHECKING:
    from jaxnlp.data.tasks.labelled_task import LabelledTask

RECORDS_SHOWN = 6
WIDTH = 100  # characters per text


def answers_beside_references(task: "LabelledTask", model: SampledModel) -> list[str]:
    """Evenly spaced records of the split, with the reference and the model's prediction."""
    records = model.store.records
    spaced = {round(i * (len(records) - 1) / max(1, RECORDS_SHOWN - 1)) for i in range(RECORDS_SHOWN)}
    examples = model.store.encoded(task, model.tokenizer, model.data.seq_len)
    selected = [example for example in examples if example.record in spaced]
    numbers = [number for number, _ in itertools.groupby(example.record for example in selected)]
    lines = ["", "validation examples, the reference and the model's answer:"]
    for number, answer in zip(numbers, model.predict(records, selected), strict=True):
        text = task.display(records[number])
        lines += ["", f"  | {text if len(text) <= WIDTH else text[: WIDTH - 3] + '...'}"]
        lines.append(f"  {verdict(task.reference(records[number]), answer)}")
    return lines


def verdict(reference: dict[str, Any], answer: dict[str, Any]) -> str:
    """One line with the reference, and the model's answer where it differs."""
    (key, label), prediction = next(iter(reference.items())), answer[next(iter(reference))]
    if isinstance(label, list):
        wrong = [f"{i + 1}: {a} > {b}" for i, (a, b) in enumerate(zip(label, prediction, strict=True)) if a != b]
        listed = f"; {', '.join(wrong[:8])}" if wrong else ""
        return f"{key}: {len(label) - len(wrong)} of {len(label)} right{listed}"
    if isinstance(label, float):
        return f"{key}: {label:.3g} > {prediction:.3g}"
    shares = answer.get("probabilities")
    share = f" ({max(shares.values() if isinstance(shares, dict) else shares):.0%})" if shares else ""
    mark = "right" if label == prediction else "wrong"
    guess = "" if label == prediction else f" > {_quoted(prediction)}"
    return f"{mark:6} {key} {_quoted(label)}{guess}{share}"


def _quoted(value: Any) -> str:
    return "none" if value == "" or (isinstance(value, float) and math.isnan(value)) else str(value)
