"""Sets up a loop from a config and a run folder: program, tokenizer, data and state."""

import dataclasses
from collections.abc import Sequence

from jaxnlp.data.pipeline import open_split, open_tokenizer
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.evaluator import Store
from jaxnlp.training.experiment import Experiment, check_with_hooks, resolve
from jaxnlp.training.hooks import Hook
from jaxnlp.training.init.frozen_base import attach_base, init_state
from jaxnlp.training.init.transfer import transfer_params
from jaxnlp.training.run_folder import resume
from jaxnlp.training.run_folder.checkpoint import Saved, versions
from jaxnlp.training.run_folder.run_folder import RunFolder
from jaxnlp.training.step.program import Program, build
from jaxnlp.training.step.state import TrainState


@dataclasses.dataclass(frozen=True)
class Setup:
    """A resolved experiment, ready to train. stores: by split, train and validation. state: the initial state."""

    experiment: Experiment
    tokenizer: Tokenizer
    program: Program
    stores: dict[str, Store]
    state: TrainState


def prepare(
    experiment: Experiment, saved: Saved | None = None, hooks: Sequence[Hook] = ()
) -> tuple[Experiment, Tokenizer]:
    """The checked and resolved experiment, and its tokenizer (a checkpoint's own, if there is one).

    hooks: more hooks, besides those of the experiment.
    """
    check_with_hooks(experiment, hooks)
    tokenizer = saved.tokenizer if saved is not None else open_tokenizer(experiment.data)
    return resolve(experiment, tokenizer), tokenizer


def set_up(experiment: Experiment | None, run: RunFolder, hooks: Sequence[Hook] = ()) -> Setup:
    """Builds the program, opens the data, and initialises the state or restores it from the folder's newest checkpoint.

    Args:
        experiment: the config; None takes that of the checkpoint. hooks: more hooks, for the checks.

    Raises:
        UserError: a config that cannot run, or cannot resume.
    """
    saved = run.saved()
    if experiment is None:
        if saved is None:
            raise UserError(f"--workdir={run.path}: no checkpoint to resume from; give a config with --config=FILE")
        experiment = saved.experiment
    e, tokenizer = prepare(experiment, saved, hooks)
    if saved is not None:
        for path, old, new in resume.changes(saved.experiment, e):
            run.info(f"note: resuming with {path} changed from {old!r} to {new!r}")
    program = build(e)
    stores = {split: open_split(e.data, split, tokenizer, run.info) for split in ("train", "validation")}
    state = _initial(program, tokenizer, run) if saved is None else _restored(program, tokenizer, run, saved)
    return Setup(e, tokenizer, program, stores, state)


def _initial(program: Program, tokenizer: Tokenizer, run: RunFolder) -> TrainState:
    """A new state. If parameters are loaded, prints and saves the report of what was loaded."""
    state, report = init_state(program, tokenizer, run.info)
    if report is not None:
        run.info("\n".join(report.lines()))
        if run.is_first:
            report.save(run.path)
    if program.tuning is not None:
        run.info(program.tuning.report())
    return transfer_params(program, state, run.info)


def _restored(program: Program, tokenizer: Tokenizer, run: RunFolder, saved: Saved) -> TrainState:
    saved_jaxlib, jaxlib = saved.versions.get("jaxlib"), versions().get("jaxlib")
    if saved_jaxlib != jaxlib:
        run.info(f"note: the checkpoint was written with jaxlib {saved_jaxlib}, not {jaxlib}; bits may differ")
    stride = program.experiment.steps_per_call
    if saved.step % stride:
        raise FieldError(
            "steps_per_call",
            stride,
            f"does not divide the step of the checkpoint, {saved.step}; set it to 1, or another divisor",
        )
    state = run.reader.restore(saved.step, program.abstract)
    return attach_base(program, state, tokenizer, saved.data, run.info)
