"""Evaluate a trained run with its evaluators, or by the loss and the task's metrics, on any split or file.

python -m experiments.evaluate --workdir=runs/tiny --split=validation
python -m experiments.evaluate --workdir=runs/bert-spans --split=test --out=spans.json --predictions=spans.jsonl
python -m experiments.evaluate --workdir=runs/bert-spans --evaluators=squad --input=new.jsonl
"""

import dataclasses
import json
import pathlib
import sys
from typing import TYPE_CHECKING

from absl import flags

from jaxnlp import cli, distributed, runtime
from jaxnlp.errors import UserError

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig
    from jaxnlp.evals.evaluator import Evaluator

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
SPLIT = flags.DEFINE_string("split", None, "train, validation or test. Default: the split of each evaluator.")
INPUT = flags.DEFINE_string("input", None, "File, glob or folder to evaluate on instead of a split.")
EVALUATORS = flags.DEFINE_string(
    "evaluators", "", "Comma-separated names of the run's evaluators, or the defaults loss and predictions."
)
JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of a table.")
OUT = flags.DEFINE_string("out", None, "JSON file for the metrics.")
PREDICTIONS = flags.DEFINE_string("predictions", None, "JSON-lines file for predictions and references.")


def main() -> None:
    from jaxnlp.evals.evaluator import EvaluatedModel
    from jaxnlp.training.load import load

    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a trained run, for example runs/tiny")
    run = load(WORKDIR.value, CHECKPOINT.value)
    log = lambda text: print(text, file=sys.stderr)
    model = EvaluatedModel(run.program, run.params, run.saved.tokenizer, run.generator, log=log)
    scores, rows = {}, []
    for evaluator in chosen(run.saved.experiment):
        outcome = evaluator.evaluate(model)
        scores[evaluator.name] = outcome.metrics
        rows += [{"evaluator": evaluator.name, **row} for row in outcome.rows]
    flat = scores.pop("loss", {})  # metrics of the loss evaluator have no prefix
    flat |= {f"{name}/{metric}": x for name, metrics in scores.items() for metric, x in metrics.items()}
    result = {"step": run.saved.step, "split": INPUT.value or SPLIT.value or "validation", **flat}
    if OUT.value is not None:
        write(OUT.value, json.dumps(result, indent=1) + "\n")
    if PREDICTIONS.value is not None:
        write(PREDICTIONS.value, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
    if JSON.value:
        print(json.dumps(result))
    else:
        print_table(result, run.saved.experiment.data)


def chosen(experiment) -> "list[Evaluator]":
    """The evaluators to run, on the split or file of the command line."""
    from jaxnlp.evals.defaults import default_evaluators
    from jaxnlp.evals.evaluator import find

    evaluators_available = [*default_evaluators(experiment.data), *experiment.evaluators]
    if EVALUATORS.value:
        evaluators = find(evaluators_available, EVALUATORS.value.split(","))
    else:
        evaluators = (
            [evaluators_available[0], *experiment.evaluators] if experiment.evaluators else evaluators_available
        )
    path = INPUT.value
    if path is not None:
        of_records = experiment.data.source.has_records
        source = lambda evaluator: file_source(path, of_records or evaluator.reads_records)
        return [dataclasses.replace(evaluator, split="test", source=source(evaluator)) for evaluator in evaluators]
    changes = {} if SPLIT.value is None else {"split": SPLIT.value}
    return [dataclasses.replace(evaluator, **changes) for evaluator in evaluators]


def file_source(path: str, of_records: bool):
    """A source whose test split is the file."""
    from jaxnlp.data.records import Records
    from jaxnlp.data.text.sources import Files

    return (Records if of_records else Files)(train=path, test=path)


def print_table(result: dict, data: "DataConfig") -> None:
    count = f", {result['tokens']:,.0f} {data.task.unit}" if "tokens" in result else ""
    print(f"step {result['step']:,}, {result['split']} split{count}:")
    order = ("loss", "perplexity")
    names = [*(name for name in order if name in result), *sorted(set(result) - {*order, "step", "split", "tokens"})]
    width = max([14, *map(len, names)])
    for name in names:
        unit = " nats/token" if name == "loss" and "perplexity" in result else ""
        print(f"  {name.replace('_', ' '):{width}} {result[name]:.4f}{unit}")


def write(path: str, text: str) -> None:
    if not distributed.first():
        return
    try:
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text(text, encoding="utf-8")
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror}); choose another file") from None


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
