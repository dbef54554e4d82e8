"""The memory that a program can use on a device and on its host."""

import os
from typing import Any

import jax

from jaxnlp.hardware import chip_of
from jaxnlp.planning.network import link_group


def attached_device(device: Any) -> Any | None:
    """A local device of the same kind; None for the devices of a topology that is not attached to this process."""
    return next((d for d in jax.local_devices() if d.device_kind == device.device_kind), None)


def device_memory_limit(device: Any) -> float | None:
    """Bytes of device memory that a program can use; None if unknown.

    An attached device reports its limit (JAX takes three quarters of a GPU's memory). Otherwise it is the limit of
    the chip (`hardware.py`). For a CPU it is its share of the RAM.
    """
    if device.platform == "cpu":
        return host_ram() / jax.local_device_count()
    attached, chip = attached_device(device), chip_of(device)
    limit = None if attached is None else (attached.memory_stats() or {}).get("bytes_limit")
    return limit if limit is not None else None if chip is None else chip.memory_limit


def host_memory_limit(device: Any) -> float | None:
    """A device's share of host memory in bytes: of this machine if such a device is attached, else of the chip's host.

    None if unknown.
    """
    if attached_device(device) is None:
        chip = chip_of(device)
        return None if chip is None else chip.host_memory_limit
    if device.platform != "gpu":
        return host_ram() / jax.local_device_count()
    # The GPUs of a host, whichever processes own them.
    return host_ram() / sum(link_group(d) == link_group(device) for d in jax.devices())


def host_ram() -> int:
    """Bytes of RAM of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
