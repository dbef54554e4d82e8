"""Frozen base of a PEFT run.

Checkpoints store only trained parameters. The base is reloaded from `init_from`, or without it drawn again by the seed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.peft.files import fingerprint
from jaxnlp.training.step.program import Program
from jaxnlp.training.step.state import TrainState

BASE = "base"  # key of the fingerprint in a checkpoint's data


def attach_base(
    program: Program, state: TrainState, tokenizer: Any, data: Any, log: Callable[[str], Any]
) -> TrainState:
    """A state read from a checkpoint, with its frozen parameters. Full fine-tuning: returned unchanged.

    Args:
        data: the checkpoint's record of that name, which holds the base's fingerprint.

    Raises:
        UserError: the base is missing, or is not the one that the run was tuned on.
    """
    if program.tuning is None:
        return state
    frozen = init_state(program, tokenizer, log)[0].frozen
    if fingerprint(frozen) != data[BASE]:
        e = program.experiment
        source = "seed" if e.init_from is None else f"init_from.path={e.init_from.path}"
        raise UserError(
            f"{source}: its parameters are not those that this run was tuned on (fingerprint "
            f"{fingerprint(frozen)}, was {data[BASE]}); restore them, or tune again in another --workdir"
        )
    return dataclasses.replace(state, frozen=frozen)


def init_state(program: Program, tokenizer: Any, log: Callable[[str], Any]) -> tuple[TrainState, Any]:
    """(the state at step 0, the report of what was loaded); the report is None without `init_from`."""
    state, init_from = program.init(), program.experiment.init_from
    return (state, None) if init_from is None else init_from.begin(program, state, tokenizer, log)
