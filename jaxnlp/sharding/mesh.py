"""The device mesh: the number of devices along each named axis, and their order."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxnlp.config import field_values
from jaxnlp.errors import FieldError, UserError

AXES = ("data", "stage", "fsdp", "sequence", "tensor")
"""Mesh axes, from the outermost (farthest neighbours, least communication) to the innermost."""


@dataclasses.dataclass(kw_only=True)
class MeshConfig:
    """Number of devices along each axis. One axis may be -1: it takes the remaining devices.

    data: model replicas, each with its own shard of the batch.
    stage: pipeline stages, each with its own layers; more than 1 requires `Sharding.pipeline`.
    fsdp: shards the batch as well, and the parameters, gradients or optimizer state that a rule table maps to it
        (ZeRO).
    sequence: shards of the sequence length (context parallelism).
    tensor: shards of heads, feed-forward and vocabulary; innermost, on the fastest links.
    dcn: axis -> number of TPU slices it spans. Slices communicate over the data-centre network (DCN) instead of chip
        links (ICI). `dcn={"data": 2}` with `data=8` places four devices on each of two slices.
    """

    data: int = -1
    stage: int = 1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    dcn: object = dataclasses.field(default_factory=dict)  # a dict; typed so that flags can set it

    @property
    def parts(self) -> dict[str, int]:
        """`dcn` with its exact type."""
        return dict(cast(Mapping[str, int], self.dcn))

    def check(self) -> None:
        sizes = field_values(self, *AXES)
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise FieldError(axis, size, "expected a positive number of devices, or -1 for the remaining devices")
        if list(sizes.values()).count(-1) > 1:
            second = [axis for axis, size in sizes.items() if size == -1][1]
            raise FieldError(second, -1, "only one axis can be -1")
        if not isinstance(self.dcn, Mapping):
            raise FieldError("dcn", self.dcn, "expected a dict of axes and numbers of slices, as {'data': 2}")
        for axis, parts in self.parts.items():
            if axis not in AXES:
                raise FieldError("dcn", axis, f"no such mesh axis; expected one of {', '.join(AXES)}")
            if parts < 1 or (sizes[axis] != -1 and sizes[axis] % parts):
                raise FieldError(f"dcn[{axis!r}]", parts, f"expected a divisor of {axis}={sizes[axis]}")

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Size of each axis over `num_devices`, with -1 resolved. Raises UserError if the product differs from it."""
        sizes = field_values(self, *AXES)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        has_free_axis = -1 in sizes.values()
        for axis, size in sizes.items():
            if size == -1:
                sizes[axis] = num_devices // fixed
        if math.prod(sizes.values()) != num_devices:
            configured = field_values(self, *AXES)
            axes = ", ".join(f"{axis}={size}" for axis, size in configured.items() if size != 1) or "data=1"
            required = f"a multiple of {fixed}" if has_free_axis else str(fixed)
            raise UserError(
                f"sharding.mesh: {axes} needs {required} devices, got {num_devices}; "
                "set sizes whose product is that number, or one of them to -1"
            )
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over `devices` (default: all), ordered to match the physical topology.

    With `config.dcn` the devices of one slice stay together (a hybrid mesh).

    Raises:
        UserError: the product of the sizes is not the number of devices; `dcn` is unset for devices on several TPU
            slices, or does not match the number of slices or processes.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(devices))
    shape = tuple(sizes[axis] for axis in AXES)
    if len(devices) == 1:
        order = np.asarray(devices).reshape(shape)
    elif math.prod(config.parts.values()) > 1:
        order = _hybrid(shape, tuple(config.parts.get(axis, 1) for axis in AXES), devices)
    else:
        if (count := tpu_slices(devices)) > 1:
            raise UserError(
                f"sharding.mesh.dcn: not set, but the devices are on {count} slices, which a slow network connects; "
                f"set the axis that spans the slices, as dcn={{'data': {count}}}"
            )
        order = _order(shape, devices)
    return Mesh(order, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def slice_index(device: Any) -> int | None:
    """Index of a device's TPU slice, or of its host; None if the JAX backend does not define one."""
    return getattr(device, "slice_index", None)  # an attribute of JAX's devices on some backends only


def tpu_slices(devices: Sequence[Any]) -> int:
    """Number of TPU slices that the devices lie on; 1 on other platforms."""
    return len({slice_index(d) for d in devices}) if devices[0].platform == "tpu" else 1


def _order(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:  # no product of full physical axes gives these sizes: one axis is split
        with _layout_errors(shape):
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _hybrid(shape: tuple[int, ...], slices: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    for axis, size, parts in zip(AXES, shape, slices, strict=True):
        if size % parts:
            raise UserError(f"sharding.mesh: dcn[{axis!r}]={parts} does not divide {axis}={size}")
    slice_ids = {slice_index(d) for d in devices}  # equal on all CPU devices, where each process counts as a slice
    by_process = None in slice_ids or (devices[0].platform != "tpu" and len(slice_ids) == 1)
    group_of = (lambda d: d.process_index) if by_process else (lambda d: d.slice_index)
    num_groups, num_parts = len({group_of(d) for d in devices}), math.prod(slices)
    if num_groups != num_parts:
        unit = "processes" if by_process else "slices"
        raise UserError(
            f"sharding.mesh.dcn: the product of the sizes is {num_parts}, but the devices are on {num_groups} {unit}; "
            f"set sizes whose product is {num_groups}, or dcn={{}}"
        )
    per_slice = tuple(size // parts for size, parts in zip(shape, slices, strict=True))
    create = mesh_utils.create_hybrid_device_mesh
    try:
        return create(per_slice, slices, devices, process_is_granule=by_process)
    except NotImplementedError:
        with _layout_errors(shape):
            return create(per_slice, slices, devices, process_is_granule=by_process, allow_split_physical_axes=True)


@contextlib.contextmanager
def _layout_errors(shape: tuple[int, ...]) -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        sizes = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True) if size > 1)
        message = f"sharding.mesh: the devices cannot be laid out as {sizes} ({error}); choose other sizes"
        raise UserError(message) from None
