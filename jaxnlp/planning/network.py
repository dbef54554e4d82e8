"""Collectives on their way: over which network, how many bytes a device sends, and how long that takes at best."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.hardware import Chip
from jaxnlp.planning.hlo import Collective
from jaxnlp.sharding.mesh import slice_index


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along the same mesh axes, in a step. bytes: that each device sends over the network,
    as a ring would; over DCN what is left once slices have reduced, or before they gather, within.

    network: "ICI" or "NVLink" (links between chips), "links" (of GPUs, of a kind not known), "DCN" (between slices or
    hosts), "memory" (a host's).
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
    for op in (with_mesh_positions(op, mesh) for op in ops):
        network, sent, one = transfer(op, mesh, chip)
        key = (op.kind, op.axes(mesh.shape), network)
        groups.setdefault(key, []).append((op.count, op.count * sent, None if one is None else op.count * one))
    rows = [Traffic(*key, *(sum_known(column) for column in zip(*group, strict=True))) for key, group in groups.items()]
    return tuple(sorted(rows, key=lambda row: -row.bytes))


def sum_known(column: Sequence[Any]) -> Any:
    """The sum, or None if a part of it is not known."""
    return None if None in column else sum(column)


def with_mesh_positions(op: Collective, mesh: Any) -> Collective:
    """With members as places in the mesh. A program for several TPU slices numbers devices within a slice, and those
    that it talks to in others by their ids."""
    devices = list(mesh.devices.flat)
    if op.between_slices:
        place = {device.id: i for i, device in enumerate(devices)}
    elif len({link_group(d) for d in devices}) > 1 and devices[0].platform == "tpu":
        place = [i for i, device in enumerate(devices) if link_group(device) == link_group(devices[0])]
        op = op if op.members else dataclasses.replace(op, members=(tuple(range(len(place))),))
    else:
        return op
    return dataclasses.replace(op, members=tuple(tuple(place[i] for i in row) for row in op.members))


def transfer(op: Collective, mesh: Any, chip: Chip | None) -> tuple[str, float, float | None]:
    """(network, bytes that a device sends over it, seconds of one execution at best).

    The network is "DCN" between slices or hosts; within one as `Traffic` has it.
    """
    devices = mesh.devices.flatten()
    groups = [[devices[i] for i in row] for row in op.members] or [list(devices)]
    slices = max(len(set(map(link_group, group))) for group in groups)
    if slices > 1:
        # What has been reduced within each slice crosses once, a device's share of it each.
        each = 1 if op.kind in ("collective-permute", "all-to-all") else slices / len(groups[0])
        across = dataclasses.replace(op, members=(tuple(range(slices)),), bytes=int(op.bytes * each))
        crossed = across.sent(slices)
        return "DCN", crossed, None if chip is None or chip.dcn_bandwidth is None else crossed / chip.dcn_bandwidth
    if op.kind == "collective-permute":
        linked = None if chip is None else permute_bandwidth(chip, groups)
    else:
        linked = None if chip is None else group_bandwidth(chip, groups[0], devices)
    switched = chip is not None and chip.switched
    name = {"tpu": "ICI", "cpu": "memory"}.get(devices[0].platform, "NVLink" if switched else "links")
    sent = op.sent(mesh.size)
    return name, sent, None if linked is None else sent / linked


def link_group(device: Any) -> int:
    """The slice of a TPU, or the host of another device, whose members talk over links of their own.

    A GPU's `slice_index` is its host's number, whichever of the host's processes has it.
    """
    number = slice_index(device)
    return number if number is not None else 0 if device.platform == "tpu" else device.process_index


def group_bandwidth(chip: Chip, group: Sequence[Any], devices: Sequence[Any]) -> float | None:
    """Bytes a second that a device can send to others of its group, along each side of the torus over which the group
    lies: both ways where that side closes to a ring and the group has all of it, else one way. None: not known."""
    if chip.link_bandwidth is None or chip.switched:
        return total_link_bandwidth(chip)
    coordinates, everywhere = (np.array([d.coords for d in ones]) for ones in (group, devices))
    lengths = [len(set(column)) for column in coordinates.T]
    sides = [(length, len(set(column))) for length, column in zip(lengths, everywhere.T, strict=True) if length > 1]
    if not sides:  # the two halves of one chip
        return total_link_bandwidth(chip)
    return chip.link_bandwidth * sum(2 if length == side >= chip.min_ring else 1 for length, side in sides)


def permute_bandwidth(chip: Chip, pairs: Sequence[Sequence[Any]]) -> float | None:
    """Bytes a second from a device to the one that it sends to: over one link, where no switch joins them."""
    if chip.link_bandwidth is None or chip.switched or all(tuple(a.coords) == tuple(b.coords) for a, b in pairs):
        return total_link_bandwidth(chip)
    return chip.link_bandwidth


def total_link_bandwidth(chip: Chip) -> float | None:
    """Bytes a second over all links of a device."""
    return None if chip.link_bandwidth is None else chip.link_bandwidth * chip.num_links
