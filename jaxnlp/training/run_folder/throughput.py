"""How fast a run goes: tokens a second, and the share of the device's peak that is."""

import time
from typing import Any

from jaxnlp.hardware import peak_flops
from jaxnlp.nn.policy import Policy
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.flops import step_flops
from jaxnlp.training.step.program import Program


class ThroughputMeter:
    """Tokens a second, utilisation and time left, of training alone: pauses do not count."""

    def __init__(self, experiment: Experiment, program: Program, step: int):
        self._e = experiment
        self._tokens = experiment.data.batch_size * experiment.data.seq_len
        device = program.mesh.devices.flat[0]
        dtype = (experiment.model.policy or Policy()).operand_dtype
        given, count = experiment.peak_flops, program.mesh.size
        peak, source = peak_flops(device, dtype) if given is None else (given, f"{given:.4g} FLOP/s, as configured")
        self._peak = None if peak is None else peak * count
        self.peak = source if count == 1 else f"{count} x {source}"
        self._flops = step_flops(program) / self._tokens
        self._paused, self._mark = 0.0, None
        self._recent: list[tuple[int, float]] = []

    def now(self) -> float:
        """Seconds on a clock that stands still in pauses."""
        return time.perf_counter() - self._paused

    def add(self, step: int, ended: float | None = None) -> None:
        """A step has ended, now or at `ended`. The first, which waited for the compiler, only starts the clock."""
        self._recent.append((step, self.now() if ended is None else ended))
        keep = max(2, 1 + (self._e.log_every or 10) // self._e.steps_per_call)
        del self._recent[:-keep]

    def speed(self, step: int) -> dict[str, float]:
        (a, begun), (b, ended) = self._recent[0], self._recent[-1]
        if b <= a or ended <= begun:  # the end of the one was told only when the other had ended
            return {}
        rate = (b - a) * self._tokens / (ended - begun)
        found = {"tokens_per_second": rate}
        if self._peak:
            found["mfu"] = rate * self._flops / self._peak
        return found

    def seconds_left(self, step: int) -> float | None:
        rate = self.speed(step).get("tokens_per_second")
        return None if rate is None else (self._e.steps - step) * self._tokens / rate

    def pause(self) -> "ThroughputMeter":
        return self

    def __enter__(self) -> None:
        self._mark = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        assert self._mark is not None
        self._paused += time.perf_counter() - self._mark
