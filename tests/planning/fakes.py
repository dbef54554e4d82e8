"""Fake devices with coordinates and kinds."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Fake:
    """A TPU chip with coordinates."""

    coords: tuple[int, ...]
    slice_index: int = 0
    id: int = 0
    device_kind: str = "TPU v5 lite"
    platform: str = "tpu"
    process_index: int = 0
    stats: dict | None = None

    def memory_stats(self) -> dict | None:
        return self.stats


def gpus(hosts: int, each: int, kind: str = "NVIDIA H100 80GB HBM3") -> list[Fake]:
    """GPUs as XLA describes them: with coordinates and one slice per host; here with one process per GPU."""
    places = [(host, i) for host in range(hosts) for i in range(each)]
    return [Fake((host, 0, i), host, n, kind, "gpu", process_index=n) for n, (host, i) in enumerate(places)]


def meshed(devices) -> Any:
    return type("Mesh", (), {"devices": np.array(devices, object), "size": len(devices)})
