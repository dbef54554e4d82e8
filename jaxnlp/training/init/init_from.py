"""The base class of `Experiment.init_from`."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(kw_only=True)
class InitFrom:
    """The source of a run's initial parameters. path: shown in messages."""

    path: str = ""

    def begin(self, program: Any, state: Any, tokenizer: Any, log: Callable[[str], Any]) -> tuple[Any, Any]:
        """(the state with these parameters, a report with `lines()` and `save(workdir)`).

        Args:
            program: the new run's. state: its state at step 0, which must not be used afterwards.
            tokenizer: the run's. log: prints a line.
        """
        raise TypeError(f"{type(self).__name__}: defines no begin(), which initialises a run's parameters")
