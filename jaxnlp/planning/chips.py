"""Chips in figures: memory, its speed, the links between chips, and the network between hosts.

Figures are of one device as JAX counts them: a chip, but half a chip (one of its two chiplets) of TPU7x. Arithmetic
is in `training/run_folder/throughput.py`, which the training log's utilisation is made of too.
"""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp

from jaxnlp.training.run_folder.throughput import peak_flops

GiB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of device.

    kind: pattern of the whole of JAX's `device_kind`. hbm: bytes of memory. usable: of these what the compiler lets a
        program have, as its own messages say; None: not known. hbm_bandwidth: bytes a second.
    link: bytes a second that one link carries each way; None: cards are joined as their host has it. links: of a
        device. switched: any device reaches any other at the speed of all its links; else links go to neighbours in a
        torus of `dimensions`, which closes to a ring along a side of at least `wraps` chips.
    dcn: bytes a second of the data-centre network, a device's share of its host's. host_memory: bytes of a host's
        memory, which its devices_per_host share. None is unknown, or not stated.
    tf32: operations a second on float32, as JAX multiplies it by default, where that differs from bfloat16.
    source: where the figures are from.
    """

    name: str
    kind: str
    hbm: float
    hbm_bandwidth: float
    link: float | None = None
    links: int = 0
    usable: float | None = None
    switched: bool = False
    dimensions: int = 0
    wraps: int = 0
    dcn: float | None = None
    devices_per_host: int | None = None
    host_memory: float | None = None
    tf32: float | None = None
    source: str = ""

    @property
    def limit(self) -> float:
        """Bytes that a program can have."""
        return self.hbm if self.usable is None else self.usable

    @property
    def host_limit(self) -> float | None:
        """Bytes of the host's memory, a device's share; None: not known."""
        if self.host_memory is None or self.devices_per_host is None:
            return None
        return self.host_memory / self.devices_per_host


A100 = Chip(
    name="A100",
    kind=r"(NVIDIA )?A100-SXM4?-80GB",
    hbm=80e9,
    hbm_bandwidth=2039e9,
    link=25e9,
    links=12,
    switched=True,
    dcn=200e9 / 8,
    devices_per_host=8,
    host_memory=2e12,
    tf32=156e12,
    source="nvidia.com, A100 data sheet (SXM: NVLink 600 GB/s both ways); network, host: DGX A100 data sheet, 640 GB",
)
H100 = Chip(
    name="H100",
    kind=r"NVIDIA H100 80GB HBM3",
    hbm=80e9,
    hbm_bandwidth=3.35e12,
    link=25e9,
    links=18,
    switched=True,
    dcn=400e9 / 8,
    devices_per_host=8,
    host_memory=2e12,
    tf32=494.5e12,
    source="nvidia.com, H100 data sheet (SXM: NVLink 900 GB/s both ways); network and host: DGX H100 data sheet",
)

# Links: a TPU page states a chip's bandwidth in both directions together, which is divided by two and by its links.
CHIPS = (
    Chip(
        name="v4",
        kind=r"TPU v4",
        hbm=32 * GiB,
        usable=30.75 * GiB,
        hbm_bandwidth=1.2e12,
        link=50e9,
        links=6,
        dimensions=3,
        wraps=4,
        devices_per_host=4,
        source="cloud.google.com/tpu/docs/v4; links: Jouppi et al. 2023, arXiv:2304.01433, table 4",
    ),
    Chip(
        name="v5e",
        kind=r"TPU v5 ?(lite|e)",
        hbm=16 * GiB,
        usable=15.75 * GiB,
        hbm_bandwidth=819e9,
        link=50e9,
        links=4,
        dimensions=2,
        wraps=16,
        dcn=6.4e12 / 8 / 256,
        devices_per_host=8,
        host_memory=512 * GiB,
        source="cloud.google.com/tpu/docs/v5e and /v6e: 400 GB/s both ways, 6.4 Tb/s of DCN for a pod of 256",
    ),
    Chip(
        name="v5p",
        kind=r"TPU v5p?",
        hbm=95 * GiB,
        hbm_bandwidth=2765e9,
        link=100e9,
        links=6,
        dimensions=3,
        wraps=4,
        dcn=50e9 / 8,
        devices_per_host=4,
        host_memory=448e9,
        source="cloud.google.com/tpu/docs/v5p: 1,200 GB/s both ways, 50 Gb/s of DCN a chip",
    ),
    Chip(
        name="v6e",
        kind=r"TPU v6 ?(lite|e)",
        hbm=32 * GiB,
        usable=31.25 * GiB,
        hbm_bandwidth=1.6e12,
        link=100e9,
        links=4,
        dimensions=2,
        wraps=16,
        dcn=25.6e12 / 8 / 256,
        devices_per_host=8,
        host_memory=1536 * GiB,
        source="cloud.google.com/tpu/docs/v6e: 800 GB/s both ways, 25.6 Tb/s of DCN for a pod of 256",
    ),
    Chip(
        name="tpu7x",
        kind=r"TPU ?7x",
        hbm=96 * GiB,
        usable=94.75 * GiB,
        hbm_bandwidth=7.38e12 / 2,
        link=100e9 / 2,
        links=6,
        dimensions=3,
        wraps=4,
        devices_per_host=8,
        source="cloud.google.com/tpu/docs/tpu7x: a chip of 192 GiB, 7,380 GB/s and 1,200 GB/s both ways, by its halves",
    ),
    A100,
    dataclasses.replace(
        A100,
        name="A100 40GB",
        kind=r"(NVIDIA )?A100-SXM4-40GB",
        hbm=40e9,
        hbm_bandwidth=1555e9,
        host_memory=1e12,
        source="nvidia.com, A100 data sheet (SXM, 40 GB); network, host: DGX A100 data sheet, 320 GB",
    ),
    Chip(
        name="A100 PCIe",
        kind=r"(NVIDIA )?A100 80GB PCIe",
        hbm=80e9,
        hbm_bandwidth=1935e9,
        tf32=156e12,
        source="nvidia.com, A100 data sheet (PCIe, 80 GB; NVLink joins pairs, if that)",
    ),
    Chip(
        name="A100 PCIe 40GB",
        kind=r"(NVIDIA )?A100-PCIE-40GB",
        hbm=40e9,
        hbm_bandwidth=1555e9,
        tf32=156e12,
        source="nvidia.com, A100 data sheet (PCIe, 40 GB; NVLink joins pairs, if that)",
    ),
    H100,
    Chip(
        name="H100 PCIe",
        kind=r"NVIDIA H100 PCIe",
        hbm=80e9,
        hbm_bandwidth=2e12,
        tf32=378e12,
        source="nvidia.com, H100 data sheet (PCIe; NVLink joins pairs, if that)",
    ),
    dataclasses.replace(
        H100,
        name="H200",
        kind=r"NVIDIA H200",
        hbm=141e9,
        hbm_bandwidth=4.8e12,
        source="nvidia.com, H200 data sheet (SXM: NVLink 900 GB/s both ways); network and host: DGX H200 data sheet",
    ),
    Chip(
        name="GH200",
        kind=r"NVIDIA GH200 480GB",
        hbm=96e9,
        hbm_bandwidth=4e12,
        devices_per_host=1,
        host_memory=480e9,
        tf32=494.5e12,
        source="nvidia.com, GH200 data sheet (96 GB of HBM3 and 480 GB of LPDDR5X each; links as the system has them)",
    ),
)


def chip_of(device: Any) -> Chip | None:
    """The chip of a JAX device; None for one that the table lacks, as a CPU or a part of a GPU."""
    return next((chip for chip in CHIPS if re.fullmatch(chip.kind, device.device_kind)), None)


def flops(device: Any, operand_dtype: Any) -> tuple[float | None, str]:
    """Operations a second on operands of a dtype, and in words where the figure is from.

    A TPU rounds float32 operands to bfloat16 unless told otherwise, and so is as fast on them.
    """
    chip = chip_of(device)
    if chip is not None and chip.tf32 is not None and jnp.dtype(operand_dtype) == jnp.float32:
        return chip.tf32, f"{chip.tf32 / 1e12:,.0f} TFLOP/s, TF32 of {device.device_kind}"
    return peak_flops(device, operand_dtype)
