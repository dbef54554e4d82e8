"""Chip specifications: peak FLOP/s, memory, links between chips and the network between hosts.

The figures are per device as JAX counts devices: a chip; a core of TPU v2 and v3; a chiplet (half a chip) of TPU7x.
The throughput meter of a training run and the planner both read them here.
"""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

GiB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of device. Bandwidths are in bytes per second, sizes in bytes; None means not known.

    Attributes:
        kind: regular expression for the full `device_kind` of JAX; None for chips without memory figures.
        families: parts of a `device_kind` that identify the peak, also of variants that `kind` does not match.
        bf16_flops: peak dense FLOP/s on 16-bit operands.
        tf32_flops: peak FLOP/s on float32 operands, which JAX multiplies in TF32 by default; None: as bf16_flops.
        hbm: device memory. usable_hbm: the part that the compiler lets a program have, according to its own messages.
        link_bandwidth: of one link, in each direction; None: links depend on the host.
        num_links: links per device.
        switched: any device reaches any other over all its links. Otherwise links go to the neighbours in a torus of
            `dimensions` dimensions, whose side closes to a ring if it has at least `min_ring` chips.
        dcn_bandwidth: data-centre network, a device's share of its host's.
        host_memory: memory of a host, which its `devices_per_host` devices share.
        source: where the figures come from.
    """

    name: str
    families: tuple[str, ...]
    bf16_flops: float
    kind: str | None = None
    tf32_flops: float | None = None
    hbm: float | None = None
    usable_hbm: float | None = None
    hbm_bandwidth: float | None = None
    link_bandwidth: float | None = None
    num_links: int = 0
    switched: bool = False
    dimensions: int = 0
    min_ring: int = 0
    dcn_bandwidth: float | None = None
    devices_per_host: int | None = None
    host_memory: float | None = None
    source: str = ""

    @property
    def memory_limit(self) -> float | None:
        """Bytes of device memory that a program can use."""
        return self.hbm if self.usable_hbm is None else self.usable_hbm

    @property
    def host_memory_limit(self) -> float | None:
        """Bytes of host memory per device."""
        if self.host_memory is None or self.devices_per_host is None:
            return None
        return self.host_memory / self.devices_per_host


A100 = Chip(
    name="A100",
    kind=r"(NVIDIA )?A100-SXM4?-80GB",
    families=("A100",),
    bf16_flops=312e12,
    hbm=80e9,
    hbm_bandwidth=2039e9,
    link_bandwidth=25e9,
    num_links=12,
    switched=True,
    dcn_bandwidth=200e9 / 8,
    devices_per_host=8,
    host_memory=2e12,
    tf32_flops=156e12,
    source="nvidia.com, A100 data sheet (SXM: NVLink 600 GB/s both ways); network, host: DGX A100 data sheet, 640 GB",
)
H100 = Chip(
    name="H100",
    kind=r"NVIDIA H100 80GB HBM3",
    families=("H100",),
    bf16_flops=989e12,
    hbm=80e9,
    hbm_bandwidth=3.35e12,
    link_bandwidth=25e9,
    num_links=18,
    switched=True,
    dcn_bandwidth=400e9 / 8,
    devices_per_host=8,
    host_memory=2e12,
    tf32_flops=494.5e12,
    source="nvidia.com, H100 data sheet (SXM: NVLink 900 GB/s both ways); network and host: DGX H100 data sheet",
)

PEAKS_ALONE = {
    "TPU v2": (23e12, "Jouppi et al. 2020, doi:10.1145/3360307: 46 TFLOP/s per chip of two cores"),
    "TPU v3": (61.5e12, "Jouppi et al. 2020, doi:10.1145/3360307: 123 TFLOP/s per chip of two cores"),
    "V100": (125e12, "nvidia.com, V100 data sheet (SXM2)"),
    "T4": (65e12, "nvidia.com, T4 data sheet"),
    "A10G": (70e12, "NVIDIA, A10G data sheet (without sparsity)"),
    "L4": (121e12, "nvidia.com, L4 data sheet: 242 TFLOP/s with sparsity"),
    "L40S": (362e12, "nvidia.com, L40S data sheet (without sparsity)"),
    "H100 NVL": (835e12, "nvidia.com, H100 data sheet: 1,671 TFLOP/s with sparsity"),
    "B200": (2250e12, "nvidia.com, HGX B200 data sheet: 36 PFLOP/s with sparsity for eight"),
}
"""Chips without memory and link figures: name -> (peak 16-bit FLOP/s, its source)."""

# Links: a TPU page states a chip's bandwidth in both directions together, which is divided by two and by its links.
CHIPS = (
    Chip(
        name="v4",
        kind=r"TPU v4",
        families=("TPU v4",),
        bf16_flops=275e12,
        hbm=32 * GiB,
        usable_hbm=30.75 * GiB,
        hbm_bandwidth=1.2e12,
        link_bandwidth=50e9,
        num_links=6,
        dimensions=3,
        min_ring=4,
        devices_per_host=4,
        source="cloud.google.com/tpu/docs/v4; links: Jouppi et al. 2023, arXiv:2304.01433, table 4",
    ),
    Chip(
        name="v5e",
        kind=r"TPU v5 ?(lite|e)",
        families=(
            "TPU v5 lite",
            "TPU v5e",
        ),
        bf16_flops=197e12,
        hbm=16 * GiB,
        usable_hbm=15.75 * GiB,
        hbm_bandwidth=819e9,
        link_bandwidth=50e9,
        num_links=4,
        dimensions=2,
        min_ring=16,
        dcn_bandwidth=6.4e12 / 8 / 256,
        devices_per_host=8,
        host_memory=512 * GiB,
        source="cloud.google.com/tpu/docs/v5e and /v6e: 400 GB/s both ways, 6.4 Tb/s of DCN per pod of 256",
    ),
    Chip(
        name="v5p",
        kind=r"TPU v5p?",
        families=(
            "TPU v5",
            "TPU v5p",
        ),
        bf16_flops=459e12,
        hbm=95 * GiB,
        hbm_bandwidth=2765e9,
        link_bandwidth=100e9,
        num_links=6,
        dimensions=3,
        min_ring=4,
        dcn_bandwidth=50e9 / 8,
        devices_per_host=4,
        host_memory=448e9,
        source="cloud.google.com/tpu/docs/v5p: 1,200 GB/s both ways, 50 Gb/s of DCN per chip",
    ),
    Chip(
        name="v6e",
        kind=r"TPU v6 ?(lite|e)",
        families=(
            "TPU v6 lite",
            "TPU v6e",
        ),
        bf16_flops=918e12,
        hbm=32 * GiB,
        usable_hbm=31.25 * GiB,
        hbm_bandwidth=1.6e12,
        link_bandwidth=100e9,
        num_links=4,
        dimensions=2,
        min_ring=16,
        dcn_bandwidth=25.6e12 / 8 / 256,
        devices_per_host=8,
        host_memory=1536 * GiB,
        source="cloud.google.com/tpu/docs/v6e: 800 GB/s both ways, 25.6 Tb/s of DCN per pod of 256",
    ),
    Chip(
        name="tpu7x",
        kind=r"TPU ?7x",
        families=("TPU7x",),
        bf16_flops=1153e12,
        hbm=96 * GiB,
        usable_hbm=94.75 * GiB,
        hbm_bandwidth=7.38e12 / 2,
        link_bandwidth=100e9 / 2,
        num_links=6,
        dimensions=3,
        min_ring=4,
        devices_per_host=8,
        source="cloud.google.com/tpu/docs/tpu7x: 192 GiB, 7,380 GB/s, 1,200 GB/s both ways per chip of two chiplets",
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
        families=("A100",),
        bf16_flops=312e12,
        hbm=80e9,
        hbm_bandwidth=1935e9,
        tf32_flops=156e12,
        source="nvidia.com, A100 data sheet (PCIe, 80 GB; NVLink at most between pairs)",
    ),
    Chip(
        name="A100 PCIe 40GB",
        kind=r"(NVIDIA )?A100-PCIE-40GB",
        families=("A100",),
        bf16_flops=312e12,
        hbm=40e9,
        hbm_bandwidth=1555e9,
        tf32_flops=156e12,
        source="nvidia.com, A100 data sheet (PCIe, 40 GB; NVLink at most between pairs)",
    ),
    H100,
    Chip(
        name="H100 PCIe",
        kind=r"NVIDIA H100 PCIe",
        families=("H100 PCIe",),
        bf16_flops=756e12,
        hbm=80e9,
        hbm_bandwidth=2e12,
        tf32_flops=378e12,
        source="nvidia.com, H100 data sheet (PCIe; NVLink at most between pairs)",
    ),
    dataclasses.replace(
        H100,
        name="H200",
        kind=r"NVIDIA H200",
        families=("H200",),
        bf16_flops=989e12,
        hbm=141e9,
        hbm_bandwidth=4.8e12,
        source="nvidia.com, H200 data sheet (SXM: NVLink 900 GB/s both ways); network and host: DGX H200 data sheet",
    ),
    Chip(
        name="GH200",
        kind=r"NVIDIA GH200 480GB",
        families=("GH200",),
        bf16_flops=989e12,
        hbm=96e9,
        hbm_bandwidth=4e12,
        devices_per_host=1,
        host_memory=480e9,
        tf32_flops=494.5e12,
        source="nvidia.com, GH200 data sheet (96 GB of HBM3 and 480 GB of LPDDR5X each; links depend on the system)",
    ),
    *(Chip(name=k, families=(k,), bf16_flops=flops, source=source) for k, (flops, source) in PEAKS_ALONE.items()),
)


def chip_of(device: Any) -> Chip | None:
    """The chip of a JAX device whose memory and links are known; None for others, such as a CPU or part of a GPU."""
    return next((chip for chip in CHIPS if chip.kind and re.fullmatch(chip.kind, device.device_kind)), None)


def peak_flops(device: Any, operand_dtype: Any) -> tuple[float | None, str]:
    """Peak FLOP/s of one device, and a description of its source.

    The peak is that of `operand_dtype`: a TPU rounds float32 operands to bfloat16 by default, and so multiplies them at
    its bfloat16 peak; a GPU multiplies them in TF32 where its chip is in the table. The peak of a CPU is measured
    (`measure_matmul_flops`). A device that no row's `kind` matches has the bfloat16 peak of the longest of the
    `families` that occur in its `device_kind`; None where none occurs.
    """
    if device.platform == "cpu":
        flops = measure_matmul_flops(operand_dtype) / len(jax.local_devices(backend="cpu"))
        return (
            flops,
            f"{flops / 1e9:,.0f} GFLOP/s, measured here: a {jnp.dtype(operand_dtype).name} 1024^3 product",
        )
    kind, chip = device.device_kind, chip_of(device)
    if chip is not None and chip.tf32_flops is not None and jnp.dtype(operand_dtype) == jnp.float32:
        return chip.tf32_flops, f"{chip.tf32_flops / 1e12:,.0f} TFLOP/s, TF32 of {kind}"
    peaks = {family: chip.bf16_flops for chip in CHIPS for family in chip.families if family.lower() in kind.lower()}
    if not peaks:
        return None, f"unknown for {kind}; set peak_flops"
    peak = peaks[max(peaks, key=len)]
    return peak, f"{peak / 1e12:,.0f} TFLOP/s, bf16 of {kind}"


def measure_matmul_flops(dtype: Any, size: int = 1024, repeats: int = 6) -> float:
    """FLOP/s of a matrix product on the default device: the best of `repeats` runs."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: jax.lax.dot(x, x, preferred_element_type=jnp.float32))
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
