"""Throughput of a run: tokens per second, and the share of the devices' peak FLOP/s (MFU)."""

import time
from typing import Any

from jaxnlp.hardware import peak_flops
from jaxnlp.nn.policy import Policy
from jaxnlp.training.step.flops import step_flops
from jaxnlp.training.step.program import Program


class ThroughputMeter:
    """Speed, utilisation and time left, measured over steps only: pauses (evaluation, saving) are excluded.

    Args:
        num_steps: length of the run. window: number of newest calls over which the speed is measured.
        tokens_per_step: None measures steps per second instead.
        flops_per_token, peak: FLOPs of a step per token, and FLOP/s of all devices, for the utilisation.
        peak_source: a description of `peak`.
    """

    def __init__(
        self,
        num_steps: int,
        window: int = 10,
        tokens_per_step: int | None = None,
        flops_per_token: float = 0.0,
        peak: float | None = None,
        peak_source: str = "",
    ):
        self._num_steps, self._window, self._tokens = num_steps, max(2, window), tokens_per_step
        self._flops, self._peak, self.peak = flops_per_token, peak, peak_source
        self._paused, self._mark = 0.0, None
        self._recent: list[tuple[int, float]] = []

    @classmethod
    def of_program(cls, program: Program) -> "ThroughputMeter":
        """A meter of an experiment's tokens per second and share of the devices' peak."""
        e, count = program.experiment, program.mesh.size
        dtype = (e.model.policy or Policy()).operand_dtype
        if e.peak_flops is None:
            peak, source = peak_flops(program.mesh.devices.flat[0], dtype)
        else:
            peak, source = e.peak_flops, f"{e.peak_flops:.4g} FLOP/s, as configured"
        tokens = e.data.batch_size * e.data.seq_len
        return cls(
            e.num_steps,
            1 + (e.log_every or 10) // e.steps_per_call,
            tokens,
            step_flops(program) / tokens,
            None if peak is None else peak * count,
            source if count == 1 else f"{count} x {source}",
        )

    def now(self) -> float:
        """Seconds on a clock that stops during pauses."""
        return time.perf_counter() - self._paused

    def add(self, step: int, ended: float | None = None) -> None:
        """Records the end of a step, now or at `ended`. The first, with the compilation, only starts the clock."""
        self._recent.append((step, self.now() if ended is None else ended))
        del self._recent[: -self._window]

    def speed(self) -> dict[str, float]:
        """`tokens_per_second` and `mfu`, or `steps_per_second`; empty before the second step."""
        steps_per_second = self._steps_per_second()
        if steps_per_second is None:
            return {}
        if self._tokens is None:
            return {"steps_per_second": steps_per_second}
        rate = steps_per_second * self._tokens
        return {"tokens_per_second": rate} | ({"mfu": rate * self._flops / self._peak} if self._peak else {})

    def seconds_left(self, step: int) -> float | None:
        rate = self._steps_per_second()
        return None if rate is None else (self._num_steps - step) / rate

    def _steps_per_second(self) -> float | None:
        if not self._recent:
            return None
        (first_step, first_end), (last_step, last_end) = self._recent[0], self._recent[-1]
        if last_step <= first_step or last_end <= first_end:  # both steps were recorded at the same time
            return None
        return (last_step - first_step) / (last_end - first_end)

    def pause(self) -> "ThroughputMeter":
        return self

    def __enter__(self) -> None:
        self._mark = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        assert self._mark is not None
        self._paused += time.perf_counter() - self._mark
