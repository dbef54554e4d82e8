"""Predict labels with probabilities, tags, spans or options for new records with a fine-tuned run, as JSON lines.

  python -m experiments.predict --workdir=runs/bert-topics --text="Return a new decoder object."
  python -m experiments.predict --workdir=runs/bert-topics --input=new.jsonl --out=predicted.jsonl

Input records have the fields that the run's task reads, except the label. Each output record has an additional field
`prediction`; a field of the record with this name is written as `record_prediction`.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from absl import flags

from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local
from jaxnlp.scratch import replacing

if TYPE_CHECKING:
    from jaxnlp.data.source import Record
    from jaxnlp.data.tasks.labelled_task import LabelledTask

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
INPUT = flags.DEFINE_string(
    "input", None, "Records to predict: .jsonl, .csv, .tsv (also compressed: .gz, .zst) or .parquet."
)
TEXT = flags.DEFINE_string("text", None, "A text to predict, instead of --input, for tasks that read one text.")
OUT = flags.DEFINE_string("out", None, "File to write. Default: standard output.")


def main() -> None:
    from rich.console import Console
    from rich.progress import track

    from jaxnlp.data.records import with_results
    from jaxnlp.data.tasks.labelled_task import LabelledTask
    from jaxnlp.evals.predictions import predict
    from jaxnlp.training.load import load

    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a fine-tuned run, for example runs/bert-topics")
    if (INPUT.value is None) == (TEXT.value is None):
        raise UserError("--input, --text: expected exactly one of them")
    run = load(WORKDIR.value, CHECKPOINT.value)
    data, tokenizer = run.saved.experiment.data, run.saved.tokenizer
    if not isinstance(data.task, LabelledTask) or data.task.output != "logits":
        raise UserError(
            f"--workdir={WORKDIR.value}: its task is {type(data.task).__name__}(); expected a labelled task"
        )
    records = input_records(data.task)
    log = lambda text: print(text, file=sys.stderr)
    examples = data.task.encode(records, tokenizer, data.seq_len, log, labelled=False)
    predictions = predict(run.program, run.params, tokenizer, records, examples)
    progress = track(predictions, "predicting", len(records), console=Console(stderr=True), transient=True)
    with contextlib.ExitStack() as stack:
        out = sys.stdout if OUT.value is None else stack.enter_context(opened(OUT.value))
        for record, answer in zip(records, progress, strict=True):
            row = with_results(record.fields, {"prediction": answer})
            print(strict_json.dumps(row, ensure_ascii=False, default=str), file=out)
    if OUT.value is not None:
        log(f"step {run.saved.step:,}, {len(records):,} records written to {OUT.value}")


def input_records(task: "LabelledTask") -> "list[Record]":
    """The records to predict, from --text or --input."""
    from jaxnlp.data.records import read_records
    from jaxnlp.data.source import Record
    from jaxnlp.data.text.file_lists import expand

    if TEXT.value is not None:
        field = task.text_field
        if field is None:
            raise UserError("--text: the run's task reads several fields; expected records with --input=FILE")
        return [Record("--text", {field: TEXT.value})]
    records = [record for path in expand("--input", INPUT.value or "") for record in read_records(path)]
    if not records:
        raise UserError(f"--input={INPUT.value}: contains no records")
    return records


@contextlib.contextmanager
def opened(path: str) -> Iterator[TextIO]:
    path = path if distributed.first() else os.devnull
    with replacing(local(path)) as new, new.open("w", encoding="utf-8") as file:
        yield file


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
