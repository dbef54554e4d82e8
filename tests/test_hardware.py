"""Chips by device kind, and their peak FLOP/s."""

import jax
import jax.numpy as jnp
import pytest

from jaxnlp import hardware
from jaxnlp.hardware import CHIPS, chip_of, peak_flops
from tests.planning.fakes import Fake

KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA A100-SXM4-40GB": "A100 40GB",
    "NVIDIA A100 80GB PCIe": "A100 PCIe",
    "NVIDIA A100-PCIE-40GB": "A100 PCIe 40GB",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H200": "H200",
    "NVIDIA GH200 480GB": "GH200",
}
UNKNOWN = (
    "NVIDIA H100 NVL",
    "NVIDIA H200 NVL",
    "NVIDIA GH200 144G HBM3e",
    "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
    "TPU v3",
)


def test_every_chip_is_found_by_its_kind_and_has_a_source():
    for kind, name in KINDS.items():
        chip = chip_of(Fake((), device_kind=kind))
        assert chip is not None and chip.name == name and chip.source
        assert chip.hbm is not None and chip.hbm_bandwidth is not None
        assert chip.memory_limit is not None and chip.memory_limit <= chip.hbm
    assert {*KINDS.values()} == {chip.name for chip in CHIPS if chip.kind}
    for kind in UNKNOWN:
        assert chip_of(Fake((), device_kind=kind)) is None
    assert chip_of(jax.devices()[0]) is None


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v2", 23e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU7x", 1153e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", 835e12),  # longer names win over "H100"
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 312e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", 65e12),
    ],
)
def test_a_chip_and_its_variants_have_a_peak(kind, peak):
    flops, source = peak_flops(Fake((), device_kind=kind), jnp.bfloat16)
    assert flops == peak
    assert source == f"{peak / 1e12:,.0f} TFLOP/s, bf16 of {kind}"


def test_float32_operands_are_multiplied_in_tf32_on_a_known_gpu_and_in_bfloat16_on_a_tpu():
    of = lambda kind: peak_flops(Fake((), device_kind=kind), jnp.float32)
    assert of("NVIDIA H200") == (494.5e12, "494 TFLOP/s, TF32 of NVIDIA H200")
    assert of("TPU v4")[0] == 275e12
    assert of("NVIDIA GB999") == (None, "unknown for NVIDIA GB999; set peak_flops")


def test_the_peak_of_a_cpu_is_measured_and_shared_by_its_devices(monkeypatch):
    dtypes = []
    monkeypatch.setattr(hardware, "measure_matmul_flops", lambda dtype: dtypes.append(dtype) or 8e9)
    flops, source = peak_flops(jax.devices()[0], jnp.bfloat16)
    assert flops == 8e9 / len(jax.devices()) and dtypes == [jnp.bfloat16]
    assert source.endswith("measured here: a bfloat16 1024^3 product")
