"""The device mesh: how many devices lie along each named axis."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxnlp.errors import FieldError, UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(kw_only=True)
class MeshConfig:
    """Devices along each axis; -1, at most once, takes whatever is left.

    data: copies of the model, each on its own share of the batch.
    fsdp: the batch is split here too, and so are the parameters a rules table maps here.
    tensor: splits of heads, feed-forward and vocabulary; innermost, on the fastest links.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def check(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in AXES}
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise FieldError(axis, size, "expected a positive number of devices, or -1 for those left over")
        if list(sizes.values()).count(-1) > 1:
            second = [axis for axis, size in sizes.items() if size == -1][1]
            raise FieldError(second, -1, "only one axis can be -1")

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Size of each axis over `num_devices`. Raises UserError if they do not multiply to it."""
        sizes = {axis: getattr(self, axis) for axis in AXES}
        fixed = math.prod(size for size in sizes.values() if size != -1)
        for axis, size in sizes.items():
            if size == -1:
                sizes[axis] = num_devices // fixed
        if math.prod(sizes.values()) != num_devices:
            axes = ", ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)
            takes = f"a multiple of {fixed}" if -1 in (self.data, self.fsdp, self.tensor) else str(fixed)
            raise UserError(
                f"sharding.mesh: {axes} takes {takes} devices and there are {num_devices}; "
                "set sizes that multiply to that number, or one of them to -1"
            )
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices` (all of them by default), in the order that suits their links."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(devices))
    shape = tuple(sizes[axis] for axis in AXES)
    if len(devices) == 1:
        return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
