"""The report of a finished run: its metrics beside baselines, those of its evaluators, the best checkpoint, a sample,
and commands for the next steps.

The task supplies the baselines, the sample and the commands, and the objective describes its metrics.
"""

import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from jaxnlp.data.baselines import Baseline
from jaxnlp.errors import UserError, reason
from jaxnlp.runtime import command, option
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.loops.supervised import Result
from jaxnlp.training.run_folder.metric_log import LOG, plot, read_log
from jaxnlp.training.sampled_run import SampledRun

Part = TypeVar("Part")
NAMES, COLUMNS = 30, 12  # minimum width of names and of columns, in characters


def report(result: Result, workdir: pathlib.Path) -> str:
    """The report of a run that ended. Also plots its curves.

    With several processes all must call it: the sample is generated on the full mesh.
    """
    assert result.signal is None
    e, step, store = result.experiment, int(result.state.step), result.stores["validation"]
    model, parts = SampledRun(result.program, result.state.all_params, result.tokenizer, store), Parts()
    evaluated = result.validation is not None
    baselines = parts.made("baselines", lambda: e.data.task.baselines(model) if evaluated else [], [])
    picture = None
    if jax.process_index() == 0:
        losses = {baseline.name: baseline.loss for baseline in baselines}
        picture = parts.made("loss curve", lambda: plot(workdir, e.loss_unit, losses), None)
    out = ["", *parts.made("metrics", lambda: validation_lines(result, store.description, baselines), [])]
    out += parts.made("evaluations", lambda: evaluation_lines(result), [])
    out += ["", parts.made("speed", lambda: speed_line(workdir, result.peak), "speed: unknown")]
    out += parts.made("sample", model.lines, [])
    files = [
        ("checkpoint", workdir / "checkpoints" / str(step)),
        ("log", workdir / LOG),
        ("loss curve", picture),
        ("TensorBoard", workdir / "tensorboard"),
        ("config", workdir / "config.json"),
    ]
    out += [*parts.missing, "", "written:"]
    out += [f"  {name:12}{path}" for name, path in files if path is not None and path.exists()]
    commands = parts.made("commands", lambda: next_commands(e, workdir), [])
    return "\n".join([*out, "", "next:", *commands])


class Parts:
    """Makes the parts of a report. One that fails costs no other.

    missing: lines with the parts that could not be made, and why.
    """

    def __init__(self) -> None:
        self.missing: list[str] = []

    def made(self, name: str, make: Callable[[], Part], without: Part) -> Part:
        """`make()`, or `without` if it fails. With several processes only a UserError, which all raise, is caught."""
        try:
            return make()
        except Exception as e:
            if jax.process_count() > 1 and not isinstance(e, UserError):
                raise
            self.missing += ["", f"no {name}: {reason(e)}"]
            return without


def validation_lines(result: Result, description: str, baselines: Sequence[Baseline]) -> list[str]:
    """The table of the validation split, or that it was not evaluated."""
    if result.validation is None:
        return ["validation split: the loss was not evaluated (eval_every=None)"]
    return table(result.experiment, result.validation, description, baselines)


def table(
    experiment: Experiment, metrics: dict[str, float], description: str, baselines: Sequence[Baseline]
) -> list[str]:
    """The model's metrics beside the baselines', and a description of its other metrics.

    Args:
        metrics: of the validation split. description: of the split's size.
    """
    objective, unit = experiment.objective, experiment.data.task.unit
    this_model = Baseline("this model", metrics["loss"], metrics.get("accuracy"), metrics.get("bits_per_byte"))
    rows = [this_model, *baselines]
    columns: list[tuple[str, str, list[Any]]] = [(experiment.loss_unit, ".4f", [row.loss for row in rows])]
    if this_model.bits_per_byte is not None:
        columns.append(("bits/byte", ".4f", [row.bits_per_byte for row in rows]))
    if this_model.accuracy is not None:
        columns.append(("accuracy", ".2%", [row.accuracy for row in rows]))
    width = max(NAMES, *(len(row.name) + 2 for row in rows))
    lines = [f"  {name:{width}}" for name in ("", *(row.name for row in rows))]
    for title, spec, values in columns:
        cells = [title, *("-" if value is None else f"{value:{spec}}" for value in values)]
        size = max(COLUMNS, *(len(cell) + 2 for cell in cells))
        lines = [line + cell.rjust(size) for line, cell in zip(lines, cells, strict=True)]
    head = f"validation split, {description}, {metrics['tokens']:,.0f} {unit}:"
    below = [f"  {line}" for line in objective.describe_metrics(metrics)]
    return [head, "", *lines, *(["", *below] if below else [])]


def evaluation_lines(result: Result) -> list[str]:
    """A line for each evaluator of the run with its newest metrics, and a line for the best checkpoint."""
    lines = []
    for evaluator in result.experiment.evaluators:
        evaluation = result.evaluations.get(evaluator.name)
        if evaluation is not None:
            metrics = ", ".join(f"{name.replace('_', ' ')} {x:.4g}" for name, x in evaluation.metrics.items())
            data = f"{evaluator.split} split" + (f" of {type(evaluator.source).__name__}" if evaluator.source else "")
            lines.append(f"{evaluator.name} ({data}, step {evaluation.step:,}): {metrics}")
    if result.best is not None:
        best = result.best
        lines.append(f"best {best.metric} {best.score:.4g} at step {best.step:,} (--checkpoint=best)")
    return ["", *lines] if lines else []


def next_commands(experiment: Experiment, workdir: pathlib.Path) -> list[str]:
    """Commands that continue the run, use its model, look inside it, or repeat it with a change."""
    e, model, prompt = experiment, experiment.model, experiment.sample_prompt or "TEXT"
    change = "--config.optim.learning_rate=3e-3"
    if model.num_layers and e.init_from is None:  # loaded parameters fix the number of layers
        change = f"--config.model.num_layers={model.num_layers + 2}"
    commands = [
        ("train on", "train", f"--config.num_steps={2 * e.num_steps}"),
        *e.data.task.next_commands(model, prompt),
    ]
    if model.body.attention is not None:
        texts = ["text", "target"] if model.kind == "encoder-decoder" else ["text"]
        commands.append(("look inside", "attention_map", " ".join(option(name, prompt) for name in texts)))
    lines = [
        f"  {name:12} {command(program, option('workdir', workdir), options)}" for name, program, options in commands
    ]
    config, other = option("config_json", workdir / "config.json"), option("workdir", f"{workdir}-2")
    return [*lines, f"  {'change it':12} {command('train', config, other, change)}"]


def speed_line(workdir: pathlib.Path, peak: str) -> str:
    """The median speed of the logged steps, and its share of the peak."""
    rows = [row for row in read_log(workdir / LOG) if "tokens_per_second" in row]
    if not rows:
        return "speed: unknown, too few steps"
    rate = statistics.median(row["tokens_per_second"] for row in rows)
    shares = [row["mfu"] for row in rows if "mfu" in row]
    share = f"{statistics.median(shares):.0%} of the peak" if shares else "peak"
    return f"speed: {rate:,.0f} tokens/s, {share} ({peak})"
