"""`experiments.plan` from the command line: for local devices, and for TPUs on any machine."""

import json
import os
import subprocess
import sys

import pytest

from tests import tpu
from tests.entry import ROOT, run


def test_the_entry_point_plans_for_the_attached_devices(tmp_path):
    config = f"--config={ROOT / 'configs/gpt/parallel.py'}:ZERO3"
    sizes = [f"--config.model.{name}={n}" for name, n in (("num_layers", 1), ("embed_dim", 64), ("vocab_size", 2048))]
    done = run("experiments.plan", config, *sizes, f"--out={tmp_path}", env={"JAX_NUM_CPU_DEVICES": "8"})
    assert done.code == 0, done.err
    assert "mesh fsdp=8" in done.out and "MFU at most" in done.out and "compiling for 8 x cpu" in done.err
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert stored["topology"] == "local" and stored["plans"][0]["fits"]
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9:2x2"], "--topology=v9:2x2: no such topology; expected one as v5e:4x4"),
        (["--topology=v5p:4x4"], "--topology=v5p:4x4: expected 3 dimensions for v5p"),
        (
            ["--topology=v5e:4x4"],
            "TPU_LIBRARY_PATH=/nowhere/libtpu.so: no such file; unset it, or get it with `make tpu`",
        ),
    ],
)
def test_a_wrong_topology_is_one_line(flags, message):
    config = f"--config={ROOT / 'configs/gpt/parallel.py'}"
    done = run("experiments.plan", config, *flags, env={"TPU_LIBRARY_PATH": "/nowhere/libtpu.so"})
    assert done.code == 2 and done.out == ""
    assert done.err.startswith(f"error: {message}") and done.err.count("\n") == 1


# Compiled for TPUs, on any machine.

GiB = 2**30


def planned(folder, config: str, topology: str, *fields: str) -> tuple[int, str, dict, int]:
    """(exit status, output, the plan, peak memory)."""
    command = [
        sys.executable,
        "-m",
        "experiments.plan",
        f"--config=configs/gpt/{config}",
        f"--topology={topology}",
    ]
    with open(folder / "out", "w+") as out:
        process = subprocess.Popen([*command, *fields, f"--out={folder}"], cwd=ROOT, env=tpu.environment(), stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    (plan,) = json.loads((folder / "plan.json").read_text())["plans"]
    return process.returncode, text, plan, usage.ru_maxrss * 1024


@pytest.mark.parametrize(
    ("config", "topology", "devices", "billions"),
    [
        pytest.param("1b", "v5e:4x4", 16, 1.3, marks=pytest.mark.slow),
        pytest.param("7b", "v5e:16x16", 256, 6.6, marks=pytest.mark.full),
        pytest.param("70b", "v5p:8x8x8", 512, 68.7, marks=pytest.mark.full),
    ],
)
def test_a_shipped_config_fits_the_topology_it_names(tmp_path, config, topology, devices, billions):
    code, text, plan, memory = planned(tmp_path, f"tpu.py:{config}", topology)
    assert code == 0 and plan["fits"], text
    assert plan["num_devices"] == devices and plan["parameters"] / 1e9 == pytest.approx(billions, abs=0.05)
    # With a margin for full compiler effort, which needs at most a quarter more memory than the least effort.
    assert plan["compiled"]["peak"] < 0.75 * plan["device_memory_limit"] and memory < 8 * GiB
    # Parameters in bfloat16 and optimizer state in float32: 2 + 12 bytes over all chips, and the batch.
    assert plan["compiled"]["arguments"] == pytest.approx(14 * plan["parameters"] / devices, rel=0.03)
    assert {row["network"] for row in plan["traffic"]} == {"ICI"}
    assert {axis for row in plan["traffic"] for axis in row["axes"]} == {"fsdp"}
    # Weights are gathered in bfloat16 twice per microbatch: forward, and backward for remat and gradients.
    gathered = sum(row["bytes"] for row in plan["traffic"] if row["kind"] == "all-gather")
    twice = 2 * 2 * plan["parameters"] * plan["accum_steps"] * (devices - 1) / devices
    assert 0.8 * twice < gathered < 1.2 * twice
    # All of a block but its last product is recomputed: a fifth more.
    assert set(plan["seconds"]) == {"compute", "HBM", "ICI fsdp"} and 0 < plan["mfu_ceiling"] <= 0.83


@pytest.mark.slow
def test_two_slices_talk_over_the_hosts_network(tmp_path):
    sizes = [f"--config.model.{name}={n}" for name, n in (("num_layers", 1), ("vocab_size", 2048))]
    slices = "--config.sharding.mesh.dcn={'data': 2}"
    untied = "--config.model.tie_embeddings=False"  # or a table's two gradients are reduced separately
    code, text, plan, _ = planned(tmp_path, "parallel.py", "2*v5e:2x2", slices, untied, *sizes)
    assert code == 0, text
    between = sum(row["bytes"] for row in plan["traffic"] if row["network"] == "DCN")
    within = sum(row["bytes"] for row in plan["traffic"] if row["network"] == "ICI")
    gradients = plan["memory"]["gradients"]
    # Reduced within a slice, and the sum gathered: 2 (3/4); between the slices a quarter each, for large arrays.
    assert gradients / 4 < between < gradients and within == pytest.approx(1.5 * gradients, rel=0.25)
    assert plan["seconds"]["DCN data"] > plan["seconds"]["ICI data"]


@pytest.mark.slow
def test_what_does_not_fit_a_tpu_is_said_plainly(tmp_path):
    fields = ("--config.model.num_layers=8", "--config.accum_steps=1")
    code, text, plan, _ = planned(tmp_path, "tpu.py:1b", "v5e:2x2", *fields)
    assert code == 1 and not plan["fits"] and plan["compiled"] is None
    assert "\ndoes not fit: the step needs" in text and "; largest part: activations, " in text
    # The first suggested change was compiled, and fits.
    change, _, outcome = plan["remedies"][0].partition(": ")
    assert (
        change.startswith("accum_steps=")
        and outcome.endswith("as compiled, fits")
        and f"  {change}: {outcome}\n" in text
    )
