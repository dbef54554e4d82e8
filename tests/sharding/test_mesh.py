"""Meshes over several slices: devices of a slice stay together, and only the named axes cross slices."""

import dataclasses
import itertools

import numpy as np
import pytest

from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.sharding.mesh import AXES, MeshConfig, make_mesh
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training import load
from jaxnlp.training.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Chip:
    """A fake TPU chip."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int | None
    process_index: int
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    client: None = None


def chips(slices: int, shape: tuple[int, int], named: bool = True) -> list[Chip]:
    """Slices of the given numbers of chips, four per host, in random order."""
    grid = []
    for s in range(slices):
        for x, y in itertools.product(*map(range, shape)):
            number = len(grid)
            grid.append(Chip(number, (x, y, 0), s if named else None, number // 4))
    return [grid[i] for i in np.random.default_rng(0).permutation(len(grid))]


CASES = {
    "data": (MeshConfig(data=8, dcn={"data": 2}), 2, (2, 2)),
    "data, split within": (MeshConfig(data=2, fsdp=4, tensor=2, dcn={"data": 2}), 2, (2, 4)),
    "the rest": (MeshConfig(fsdp=4, dcn={"data": 4}), 4, (2, 4)),
    "fsdp": (MeshConfig(data=2, fsdp=4, tensor=2, dcn={"fsdp": 2}), 2, (2, 4)),
    "stages": (MeshConfig(data=1, stage=4, fsdp=2, tensor=2, dcn={"stage": 2}), 2, (2, 4)),
    "two axes": (MeshConfig(data=4, fsdp=4, tensor=2, dcn={"data": 2, "fsdp": 2}), 4, (2, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_only_the_named_axes_lie_across_slices(case):
    config, slices, shape = CASES[case]
    devices = chips(slices, shape)
    mesh = make_mesh(config, devices)
    assert {*mesh.devices.flat} == {*devices}
    lies_on = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    for number, axis in enumerate(AXES):
        parts = config.dcn.get(axis, 1)
        lines = np.moveaxis(lies_on, number, -1).reshape(-1, mesh.shape[axis])
        runs = lines.reshape(len(lines), parts, -1)
        assert (runs == runs[:, :, :1]).all()  # each part of the axis is in one slice
        assert all(len({*line}) == parts for line in lines)  # each in a different slice


def test_hosts_are_the_slices_where_devices_name_none():
    mesh = make_mesh(MeshConfig(data=2, tensor=4, dcn={"data": 2}), chips(1, (2, 4), named=False))
    hosts = np.vectorize(lambda chip: chip.process_index)(mesh.devices).reshape(2, 4)
    assert [{*row} for row in hosts] == [{0}, {1}]


def test_slices_that_are_not_there():
    with pytest.raises(
        UserError, match=r"the product of the sizes is 4, but the devices are on 2 slices; .*product is 2"
    ):
        make_mesh(MeshConfig(data=8, dcn={"data": 4}), chips(2, (2, 2)))
    with pytest.raises(UserError, match=r"sizes is 4, but the devices are on 2 processes"):
        make_mesh(MeshConfig(data=8, dcn={"data": 4}), chips(1, (2, 4), named=False))
    with pytest.raises(UserError, match=r"dcn\['data'\]=2 does not divide data=1"):
        make_mesh(MeshConfig(fsdp=8, dcn={"data": 2}), chips(2, (2, 2)))
    with pytest.raises(FieldError, match=r"dcn\['data'\]=3: expected a divisor of data=8"):
        MeshConfig(data=8, dcn={"data": 3}).check()
    with pytest.raises(FieldError, match=r"dcn='model': no such mesh axis"):
        MeshConfig(dcn={"model": 2}).check()


def test_devices_of_several_slices_need_it_said():
    with pytest.raises(UserError, match=r"the devices are on 2 slices, .*; set the axis that spans the slices"):
        make_mesh(MeshConfig(data=8), chips(2, (2, 2)))


def test_a_run_is_read_on_more_slices_than_it_was_trained_on(monkeypatch):
    monkeypatch.setattr(load.jax, "devices", lambda: chips(2, (2, 2)))
    one_slice = Experiment(model=GPTConfig())
    assert load._fitting(one_slice).sharding.mesh == MeshConfig(dcn={"data": 2})
    saved = Experiment(model=GPTConfig(), sharding=Sharding(mesh=MeshConfig(fsdp=4, dcn={"data": 2})))
    assert load._fitting(saved) is saved
