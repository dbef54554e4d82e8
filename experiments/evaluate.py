"""Evaluate a trained run with its evaluators, or by the loss and the task's metrics, on any split or file.

python -m experiments.evaluate --workdir=runs/tiny --split=validation
python -m experiments.evaluate --workdir=runs/bert-spans --split=test --out=spans.json --predictions=spans.jsonl
python -m experiments.evaluate --workdir=runs/bert-spans --evaluators=squad --input=new.jsonl
"""

import dataclasses
import sys
from typing import TYPE_CHECKING

from absl import flags

from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local
from jaxnlp.scratch import replacing

if TYPE_CHECKING:
    from jaxnlp.evals.evaluator import Evaluator
    from jaxnlp.training.experiment import Experiment

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
SPLIT = flags.DEFINE_string("split", None, "train, validation or test. Default: the split of each evaluator.")
INPUT = flags.DEFINE_string("input", None, "File, glob or folder to evaluate on instead of a split.")
EVALUATORS = flags.DEFINE_string(
    "evaluators",
    "",
    "Comma-separated names: those of the run's config, loss, predictions, or module:name of an evaluator object or of "
    "a function without arguments that returns one.",
)
JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of a table.")
OUT = flags.DEFINE_string("out", None, "JSON file for the metrics.")
PREDICTIONS = flags.DEFINE_string(
    "predictions",
    None,
    "JSON-lines file for the records, each with evaluator, prediction and reference; a record's own field of such a "
    "name is written as record_prediction.",
)


def main() -> None:
    from jaxnlp.data.records import with_results
    from jaxnlp.evals.evaluator import EvaluatedModel
    from jaxnlp.training.load import load

    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a trained run, for example runs/tiny")
    run = load(WORKDIR.value, CHECKPOINT.value)
    log = lambda text: print(text, file=sys.stderr)
    model = EvaluatedModel(run.program, run.params, run.saved.tokenizer, run.generator, log=log)
    scores, rows, evaluated = {}, [], {}
    for evaluator in chosen(run.saved.experiment):
        outcome = evaluator.evaluate(model)
        scores[evaluator.name] = outcome.metrics
        source = INPUT.value or type(evaluator.source or run.saved.experiment.data.source).__name__
        source = source if evaluator.reads_data else "no data"
        evaluated[evaluator.name] = {"split": evaluator.split, "source": source}
        own_name = {"evaluator": evaluator.name}
        rows += [own_name | with_results(row, own_name) for row in outcome.rows]
    flat = scores.pop("loss", {})  # metrics of the loss evaluator have no prefix
    flat |= {f"{name}/{metric}": x for name, metrics in scores.items() for metric, x in metrics.items()}
    result = {"step": run.saved.step, "evaluators": evaluated, **flat}
    if OUT.value is not None:
        write(OUT.value, strict_json.dumps(result, indent=1) + "\n")
    if PREDICTIONS.value is not None:
        lines = (strict_json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        write(PREDICTIONS.value, "".join(lines))
        if not rows:
            log(f"note: {PREDICTIONS.value} is empty: {', '.join(evaluated)} predicts no records")
    if JSON.value:
        print(strict_json.dumps(result))
    else:
        print_table(result, run.saved.experiment)


def chosen(experiment) -> "list[Evaluator]":
    """The evaluators to run, on the split or file of the command line."""
    from jaxnlp.evals.defaults import choose
    from jaxnlp.evals.file_source import file_source

    evaluators = choose(experiment, EVALUATORS.value.split(",") if EVALUATORS.value else (), field="--evaluators")
    path = INPUT.value
    if path is not None:
        if SPLIT.value is not None:
            raise UserError(f"--split={SPLIT.value}: --input={path} is not a split; give one of the two")
        of_records = experiment.data.source.has_records
        sources = lambda evaluator: (evaluator.source, experiment.data.source)
        source = lambda evaluator: file_source(path, of_records or evaluator.reads_records, sources(evaluator))
        return [dataclasses.replace(evaluator, split="test", source=source(evaluator)) for evaluator in evaluators]
    changes = {} if SPLIT.value is None else {"split": SPLIT.value}
    return [dataclasses.replace(evaluator, **changes) for evaluator in evaluators]


def print_table(result: dict, experiment: "Experiment") -> None:
    unit = experiment.data.task.unit
    names = [name for name in result if name not in ("step", "evaluators", "tokens")]
    width = max([14, *map(len, names)])
    for evaluator, data in result["evaluators"].items():
        is_loss = evaluator == "loss"
        count = f", {result['tokens']:,.0f} {unit}" if is_loss else ""
        where = data["source"] if INPUT.value else f"{data['split']} split of {data['source']}"
        print(f"step {result['step']:,}, {where}{count}: {evaluator}")
        own = [name for name in names if ("/" not in name if is_loss else name.startswith(f"{evaluator}/"))]
        for name in sorted(own, key=lambda name: (name != "loss", name != "perplexity", name)):
            suffix = f" {experiment.loss_unit}" if name == "loss" else ""
            print(f"  {name.replace('_', ' '):{width}} {result[name]:.4f}{suffix}")


def write(path: str, text: str) -> None:
    if not distributed.first():
        return
    with replacing(local(path)) as new:
        new.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
