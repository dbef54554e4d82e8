"""Train a model from one config file, or resume a run.

  python -m experiments.train --config=configs/gpt/tiny.py --workdir=runs/tiny
  python -m experiments.train --config=configs/gpt/tiny.py --workdir=runs/deep --config.model.num_layers=8
  python -m experiments.train --workdir=runs/tiny                        resume from its newest checkpoint
  python -m experiments.train --workdir=runs/tiny --config.num_steps=2000    resume with a changed field
  python -m experiments.train --config=configs/gpt/gpt2.py:xl --dry_run        parameters, FLOPs, memory

Ctrl-C or SIGTERM finishes the step, saves a checkpoint, and prints the command that resumes the run.
"""

import signal
import sys
import time

from absl import flags

from jaxnlp import cli, runtime
from jaxnlp.errors import UserError, reason
from jaxnlp.paths import local

CONFIG = cli.define_config()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, for checkpoints, logs and figures. A run in it is resumed."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the parameter table, FLOPs and memory without training.")
PROFILE = flags.DEFINE_string("profile_steps", None, "Steps first:last to record a JAX trace of, for example 10:15.")


def main() -> int:
    start = time.monotonic()
    if DRY_RUN.value:
        return dry_run()
    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected a folder for the run, for example runs/tiny")
    from jaxnlp.training.loops.supervised import train
    from jaxnlp.training.run_folder.metric_log import plot

    workdir = local(WORKDIR.value)
    late_errors: list[Exception] = []
    result = train(CONFIG.value, workdir, profile_steps(PROFILE.value), late_errors=late_errors)
    import jax

    log = print if jax.process_index() == 0 else lambda *_, **__: None
    if result.signal is not None:
        name, step, steps = signal.Signals(result.signal).name, int(result.state.step), result.experiment.num_steps
        if jax.process_index() == 0:
            plot(workdir, result.experiment.loss_unit)
        log(f"\nstopped by {name} at step {step:,} of {steps:,}; the checkpoint is saved. Resume with:")
        log(f"  {runtime.command('train', runtime.option('workdir', workdir))}")
        return 128 + result.signal
    from jaxnlp.training.report import report

    log(report(result, workdir))
    log(f"\n{time.monotonic() - start:,.0f} seconds in total", file=sys.stderr)
    for error in late_errors[1:]:
        log(f"note: after the training: {reason(error)}", file=sys.stderr)
    if late_errors:
        sys.stdout.flush()  # the report comes before the error
        raise late_errors[0]
    return 0


def dry_run() -> int:
    from jaxnlp.planning.dry_run import dry_run_report
    from jaxnlp.training.setup import prepare
    from jaxnlp.training.step.program import build

    if CONFIG.value is None:
        raise UserError("--dry_run: no config; expected --config=FILE")
    experiment, _ = prepare(CONFIG.value)
    print(dry_run_report(build(experiment, only_traced=True)))
    return 0


def profile_steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UserError(f"--profile_steps={text}: expected first:last with 1 <= first <= last, for example 10:15")
    return int(first), int(last)


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
