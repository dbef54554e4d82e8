"""Network traffic of collectives: which network, how many bytes each device sends, and the least time it takes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnlp.hardware import Chip
from jaxnlp.planning.hlo import Collective
from jaxnlp.sharding.mesh import slice_index


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind along the same mesh axes in one step.

    network: "ICI" or "NVLink" (links between chips), "links" (GPU links of unknown kind), "DCN" (between slices or
        hosts), "memory" (of the host).
    bytes: sent by each device over the network with a ring algorithm. For DCN, the bytes that remain after slices
        have reduced internally, or before they gather internally.
    seconds: lower bound; None if the bandwidth is unknown.
    """

    kind: str
    axes: tuple[str, ...]
    network: str
    count: int
    bytes: float
    seconds: float | None


def traffic_of(ops: Sequence[Collective], mesh: Any, chip: Chip | None) -> tuple[Traffic, ...]:
    """The collectives of a program grouped by kind, axes and network, in descending order of bytes."""
    groups: dict[tuple[str, tuple[str, ...], str], list[tuple[int, float, float | None]]] = {}
    for op in (with_mesh_positions(op, mesh) for op in ops):
        network, num_bytes, seconds = transfer(op, mesh, chip)
        key = (op.kind, op.axes(mesh.shape), network)
        groups.setdefault(key, []).append(
            (op.count, op.count * num_bytes, None if seconds is None else op.count * seconds)
        )
    rows = [Traffic(*key, *(sum_known(column) for column in zip(*group, strict=True))) for key, group in groups.items()]
    return tuple(sorted(rows, key=lambda row: -row.bytes))


def sum_known(column: Sequence[Any]) -> Any:
    """The sum, or None if a term is None."""
    return None if None in column else sum(column)


def with_mesh_positions(op: Collective, mesh: Any) -> Collective:
    """The collective with `members` as mesh positions.

    A program for several TPU slices numbers devices within a slice; transfers between slices use device ids.
    """
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
    """(network, bytes that a device sends, least seconds) of one execution.

    The network is "DCN" between slices or hosts, and one of the others in `Traffic` within a slice or host.
    """
    devices = mesh.devices.flatten()
    groups = [[devices[i] for i in row] for row in op.members] or [list(devices)]
    slices = max(len(set(map(link_group, group))) for group in groups)
    if slices > 1:
        # The result of the reduction within a slice crosses once; each device sends its share.
        share = 1 if op.kind in ("collective-permute", "all-to-all") else slices / len(groups[0])
        across = dataclasses.replace(op, members=(tuple(range(slices)),), bytes=int(op.bytes * share))
        crossed = across.sent(slices)
        return "DCN", crossed, None if chip is None or chip.dcn_bandwidth is None else crossed / chip.dcn_bandwidth
    if op.kind == "collective-permute":
        linked = None if chip is None else permute_bandwidth(chip, groups)
    else:
        linked = None if chip is None else group_bandwidth(chip, groups[0], devices)
    switched = chip is not None and chip.switched
    name = {"tpu": "ICI", "cpu": "memory"}.get(devices[0].platform, "NVLink" if switched else "links")
    num_bytes = op.sent(mesh.size)
    return name, num_bytes, None if linked is None else num_bytes / linked


def link_group(device: Any) -> int:
    """Index of the slice (TPU) or host (other devices) whose devices are connected by links.

    A GPU's `slice_index` is the number of its host, whichever process of the host owns it.
    """
    number = slice_index(device)
    return number if number is not None else 0 if device.platform == "tpu" else device.process_index


def group_bandwidth(chip: Chip, group: Sequence[Any], devices: Sequence[Any]) -> float | None:
    """Bytes per second that a device can send within its group; None if unknown.

    On a torus, each side that the group spans counts twice (both directions) if the side closes to a ring and the
    group covers it fully, else once.
    """
    if chip.link_bandwidth is None or chip.switched:
        return total_link_bandwidth(chip)
    coordinates, everywhere = (np.array([d.coords for d in members]) for members in (group, devices))
    lengths = [len(set(column)) for column in coordinates.T]
    sides = [(length, len(set(column))) for length, column in zip(lengths, everywhere.T, strict=True) if length > 1]
    if not sides:  # the two halves of one chip
        return total_link_bandwidth(chip)
    return chip.link_bandwidth * sum(2 if length == side >= chip.min_ring else 1 for length, side in sides)


def permute_bandwidth(chip: Chip, pairs: Sequence[Sequence[Any]]) -> float | None:
    """Bytes per second from a device to its target: one link on a torus, all links with a switch. None if unknown."""
    if chip.link_bandwidth is None or chip.switched or all(tuple(a.coords) == tuple(b.coords) for a, b in pairs):
        return total_link_bandwidth(chip)
    return chip.link_bandwidth


def total_link_bandwidth(chip: Chip) -> float | None:
    """Bytes per second over all links of a device; None if unknown."""
    return None if chip.link_bandwidth is None else chip.link_bandwidth * chip.num_links
