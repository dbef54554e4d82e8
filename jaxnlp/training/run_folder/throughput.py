"""How fast a run goes: tokens a second, and the share of the device's peak that is."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.planning.flops import step_flops
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import Program

PEAKS = {  # dense bf16 operations a second of one device, as its maker states it
    "TPU v2": 23e12, "TPU v3": 61.5e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12,
    "TPU v5": 459e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12, "TPU7x": 1153e12,
    "V100": 125e12, "T4": 65e12, "A100": 312e12, "A10G": 70e12, "L4": 121e12, "L40S": 362e12,
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "B200": 2250e12,
}  # fmt: skip


class ThroughputMeter:
    """Tokens a second, utilisation and time left, of training alone: pauses do not count."""

    def __init__(self, experiment: Experiment, program: Program, step: int):
        self._e = experiment
        self._tokens = experiment.data.batch_size * experiment.data.seq_len
        device = program.mesh.devices.flat[0]
        policy = getattr(experiment.model, "policy", None)
        dtype = policy.operand_dtype if policy is not None else np.dtype(np.float32)
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


def peak_flops(device: Any, operand_dtype: Any) -> tuple[float | None, str]:
    """Operations a second of one device, and in words where the figure is from.

    TPU v2 and v3 are counted a core and TPU7x a chiplet, as JAX counts devices. A CPU is measured:
    its 1024^3 matrix product in the dtype the run multiplies in.
    """
    if device.platform == "cpu":
        flops = measure(operand_dtype) / len(jax.local_devices(backend="cpu"))
        return flops, f"{flops / 1e9:,.0f} GFLOP/s, this machine's own {jnp.dtype(operand_dtype).name} 1024^3 product"
    kind = device.device_kind
    for name in sorted(PEAKS, key=len, reverse=True):
        if name.lower() in kind.lower():
            return PEAKS[name], f"{PEAKS[name] / 1e12:,.0f} TFLOP/s, bf16 of {kind}"
    return None, f"unknown for {kind}; set peak_flops"


def measure(dtype: Any, size: int = 1024, repeats: int = 6) -> float:
    """Operations a second of a matrix product on the default device, the best of several."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: jax.lax.dot(x, x, preferred_element_type=jnp.float32))
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
