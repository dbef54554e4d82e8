"""Loss, perplexity, and bits per byte or accuracy, of a trained run over a whole split.

python -m experiments.evaluate --workdir=runs/tiny --split=validation
"""

import json
import sys

from absl import flags

from jaxnlp import cli, runtime
from jaxnlp.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
SPLIT = flags.DEFINE_string("split", "validation", "train, validation or test.")
JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead.")


def main() -> None:
    from rich.console import Console
    from rich.progress import track

    from jaxnlp.data.pipeline import eval_batches, num_batches, open_split
    from jaxnlp.evals.loss import evaluate
    from jaxnlp.training.hooks import bytes_per_token
    from jaxnlp.training.load import load

    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a trained run, as runs/tiny")
    run = load(WORKDIR.value, CHECKPOINT.value)
    data = run.saved.experiment.data
    store = open_split(data, SPLIT.value, run.saved.tokenizer, lambda text: print(text, file=sys.stderr))
    tokenizer, experiment = run.saved.tokenizer, run.saved.experiment
    count = num_batches(data.task.open(store, tokenizer, data), data)
    batches = map(run.program.put, eval_batches(store, data, rows=run.program.rows, tokenizer=tokenizer))
    shown = track(batches, f"{SPLIT.value} split", count, console=Console(stderr=True), transient=True)
    found = evaluate(run.program.eval_step, run.params, shown, experiment.objective, bytes_per_token(experiment, store))
    if JSON.value:
        print(json.dumps({"step": run.saved.step, "split": SPLIT.value, **found}))
        return
    unit = data.task.unit
    print(
        f"step {run.saved.step:,}, {SPLIT.value} split, {found['tokens']:,.0f} {unit}, {store.meta.num_bytes:,} bytes:"
    )
    print(f"  loss           {found['loss']:.4f}{' nats/token' if 'perplexity' in found else ''}")
    if "perplexity" in found:
        print(f"  perplexity     {found['perplexity']:.3f}")
    for name in sorted(set(found) - {"loss", "perplexity", "tokens"}):
        print(f"  {name.replace('_', ' '):14} {found[name]:.4f}")


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
