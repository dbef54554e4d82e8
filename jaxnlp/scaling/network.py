"""Collectives on their way: over which network, how many bytes a device sends, and how long that takes at best."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.scaling.chips import Chip
from jaxnlp.scaling.hlo import Collective


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along the same mesh axes, in a step. bytes: that each device sends over the network,
    as a ring would; over DCN what is left once slices have reduced, or before they gather, within.

    network: "ICI" or "NVLink" (links between chips), "DCN" (between slices or hosts), "memory" (a host's).
    seconds: at best; None: the speed is not known.
    """

    kind: str
    axes: tuple[str, ...]
    network: str
    count: int
    bytes: float
    seconds: float | None


def traffic_of(ops: Sequence[Collective], mesh: Any, chip: Chip | None) -> tuple[Traffic, ...]:
    """A program's collectives by kind, axes and network, what moves most first."""
    groups: dict[tuple[str, tuple[str, ...], str], list[tuple[int, float, float | None]]] = {}
    for op in (placed(op, mesh) for op in ops):
        network, sent, one = wire(op, mesh, chip)
        key = (op.kind, op.axes(mesh.shape), network)
        groups.setdefault(key, []).append((op.count, op.count * sent, None if one is None else op.count * one))
    rows = [Traffic(*key, *(total(column) for column in zip(*group, strict=True))) for key, group in groups.items()]
    return tuple(sorted(rows, key=lambda row: -row.bytes))


def total(column: Sequence[Any]) -> Any:
    """The sum, or None if a part of it is not known."""
    return None if None in column else sum(column)


def placed(op: Collective, mesh: Any) -> Collective:
    """With members as places in the mesh. A program for several TPU slices numbers devices within a slice, and those
    that it talks to in others by their ids."""
    devices = list(mesh.devices.flat)
    if op.between_slices:
        place = {device.id: i for i, device in enumerate(devices)}
    elif len({where(d) for d in devices}) > 1 and hasattr(devices[0], "coords"):
        place = [i for i, device in enumerate(devices) if where(device) == where(devices[0])]
        op = op if op.members else dataclasses.replace(op, members=(tuple(range(len(place))),))
    else:
        return op
    return dataclasses.replace(op, members=tuple(tuple(place[i] for i in row) for row in op.members))


def wire(op: Collective, mesh: Any, chip: Chip | None) -> tuple[str, float, float | None]:
    """(network, bytes that a device sends over it, seconds of one execution at best).

    The network is "DCN" between slices or hosts; within one ICI, NVLink or memory.
    """
    devices = mesh.devices.flatten()
    group = [devices[i] for i in (op.members[0] if op.members else range(mesh.size))]
    slices = max((len({where(devices[i]) for i in row}) for row in op.members), default=len(set(map(where, devices))))
    if slices > 1:
        # What has been reduced within each slice crosses once, a device's share of it each.
        each = 1 if op.kind in ("collective-permute", "all-to-all") else slices / len(group)
        across = dataclasses.replace(op, members=(tuple(range(slices)),), bytes=int(op.bytes * each))
        crossed = across.sent(slices)
        return "DCN", crossed, None if chip is None or chip.dcn is None else crossed / chip.dcn
    linked = None if chip is None else link_speed(chip, group, devices)
    name = "memory" if chip is None else "NVLink" if chip.switched else "ICI"
    sent = op.sent(mesh.size)
    return name, sent, None if linked is None else sent / linked


def where(device: Any) -> int:
    """The slice, or of other devices the host, whose members talk over links of their own."""
    found = getattr(device, "slice_index", None)
    return found if found is not None else 0 if hasattr(device, "coords") else device.process_index


def link_speed(chip: Chip, group: Sequence[Any], devices: Sequence[Any]) -> float:
    """Bytes a second that a device can send to others of its group: both ways along each side of the torus over which
    the group lies, one way where that side does not close to a ring."""
    if chip.switched:
        return chip.link * chip.links
    coordinates = np.array([d.coords for d in group])
    extent = np.array([d.coords for d in devices]).max(axis=0) + 1
    sides = [i for i in range(coordinates.shape[1]) if len(set(coordinates[:, i])) > 1]
    if not sides:  # the two halves of one chip
        return chip.link * chip.links
    return chip.link * sum(2 if extent[i] >= chip.wraps else 1 for i in sides)
