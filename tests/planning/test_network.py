"""Time and bytes of collectives within a torus, between slices and between hosts of GPUs."""

import dataclasses
import itertools

import pytest

from jaxnlp.hardware import CHIPS, H100, chip_of
from jaxnlp.planning import network
from jaxnlp.planning.hlo import Collective
from tests.planning.fakes import Fake, gpus, meshed


def seconds(kind: str, members, shape, slices: int = 1):
    places = list(itertools.product(*map(range, shape)))
    grid = [Fake(place, s) for s in range(slices) for place in places]
    chip = chip_of(grid[0])
    assert chip is not None and chip.name == "v5e"
    over, _, time = network.transfer(Collective(kind, members, 10**9, 1), meshed(grid), chip)
    return over, time


def test_time_on_links():
    row = (tuple(range(16)),)
    # One side of a 16 x 16 torus is a ring, 50 GB/s in both directions. A side of four is not a ring.
    assert seconds("all-gather", row, (16, 16)) == ("ICI", pytest.approx(15 / 16 / 100))
    assert seconds("all-reduce", row, (16, 16)) == ("ICI", pytest.approx(2 * 15 / 16 / 100))
    assert seconds("all-gather", ((0, 1, 2, 3),), (4, 4)) == ("ICI", pytest.approx(3 / 4 / 50))
    assert seconds("all-gather", (tuple(range(256)),), (16, 16)) == ("ICI", pytest.approx(255 / 256 / 200))


def test_a_group_that_has_a_part_of_a_side_sends_one_way():
    # Four of sixteen chips in a row are not a ring. One full side and a part of the other have 2 + 1 links.
    assert seconds("all-gather", ((0, 1, 2, 3),), (16, 16)) == ("ICI", pytest.approx(3 / 4 / 50))
    assert seconds("all-gather", (tuple(range(64)),), (16, 16)) == ("ICI", pytest.approx(63 / 64 / 150))


def test_a_permute_sends_over_one_link():
    ring = tuple((i, (i + 1) % 16) for i in range(16))
    assert seconds("collective-permute", ring, (16, 16)) == ("ICI", pytest.approx(1 / 50))
    assert seconds("collective-permute", ((0, 17),), (16, 16)) == ("ICI", pytest.approx(1 / 50))
    over, _, time = network.transfer(Collective("collective-permute", ((0, 1),), 10**9, 1), meshed(gpus(1, 2)), H100)
    assert (over, time) == ("NVLink", pytest.approx(1 / 450))


def test_time_between_slices():
    # Chip 0 of each slice: all data cross slices. All chips: reduced within a slice, 1/16 per chip crosses.
    dcn = 6.4e12 / 8 / 256
    assert seconds("all-reduce", ((0, 16),), (4, 4), 2) == ("DCN", pytest.approx(1e9 / dcn))
    assert seconds("all-reduce", (tuple(range(32)),), (4, 4), 2) == ("DCN", pytest.approx(1e9 / 16 / dcn))
    assert seconds("all-gather", ((0, 1, 2, 3),), (4, 4), 2)[0] == "ICI"


def test_places_in_slices():
    # Two slices of two along the inner axis: devices 0 and 2 of the mesh's four are in one slice.
    mesh = meshed([Fake((i, 0, 0), s, 100_000 * (s + 1) + i) for i in range(2) for s in range(2)])
    within = Collective("all-reduce", ((0, 1),), 8, 1)
    assert network.with_mesh_positions(within, mesh).members == ((0, 2),)
    assert network.with_mesh_positions(dataclasses.replace(within, members=()), mesh).members == ((0, 2),)
    across = Collective("all-reduce", ((100000, 200000), (100001, 200001)), 8, 1, between_slices=True)
    assert network.with_mesh_positions(across, mesh).members == ((0, 1), (2, 3))
    assert network.transfer(network.with_mesh_positions(across, mesh), mesh, CHIPS[1])[:2] == ("DCN", 8.0)
    everywhere = Collective("all-to-all", ((100000, 200000, 100001, 200001),), 8, 1, between_slices=True)
    assert network.transfer(network.with_mesh_positions(everywhere, mesh), mesh, CHIPS[1])[:2] == ("DCN", 4.0)


def test_hosts_of_gpus_talk_over_their_network_and_within_over_their_links():
    mesh = meshed(gpus(2, 4))
    within, across = (Collective("all-gather", rows, 10**9, 1) for rows in (((0, 1, 2, 3), (4, 5, 6, 7)), ((0, 4),)))
    everywhere = dataclasses.replace(within, members=())
    for op in (within, across, everywhere):
        assert network.with_mesh_positions(op, mesh) == op  # GPU programs use global device numbers
    assert network.transfer(within, mesh, H100) == ("NVLink", 0.75e9, pytest.approx(0.75 / 450))
    assert network.transfer(across, mesh, H100) == ("DCN", 0.5e9, pytest.approx(0.5 / 50))
    # Each of a host's four GPUs transfers a quarter.
    assert network.transfer(everywhere, mesh, H100)[:2] == ("DCN", 0.5e9 / 4)
    # Devices without a host, such as CPUs, are grouped by process.
    named = [dataclasses.replace(gpu, slice_index=None, process_index=gpu.slice_index) for gpu in mesh.devices]
    assert network.transfer(across, meshed(named), H100)[0] == "DCN"
    assert network.transfer(within, meshed(named), H100)[0] == "NVLink"


def test_links_that_are_not_known_have_no_time():
    op = Collective("all-gather", (), 10**9, 1)
    for kind in ("NVIDIA H100 PCIe", "NVIDIA A100 80GB PCIe", "NVIDIA GB999"):
        devices = gpus(1, 4, kind)
        assert network.transfer(op, meshed(devices), chip_of(devices[0])) == ("links", 0.75e9, None)
