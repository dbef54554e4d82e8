"""The base class of `Experiment.init_from`."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(kw_only=True)
class InitFrom:
    """Where a run's initial parameters come from. path: for messages."""

    path: str = ""

    def begin(self, program: Any, state: Any, tokenizer: Any, info: Callable[[str], Any]) -> tuple[Any, Any]:
        """(the state with these parameters, a report with `lines()` and `save(workdir)`).

        Args:
            program: of the run that begins. state: its state at step 0, whose parameters are used up.
            tokenizer: the run's. info: prints a line.
        """
        raise TypeError(f"{type(self).__name__}: defines no begin(), which initialises a run's parameters")
