"""The GPT's training step compiles for a real TPU topology, with the Pallas kernel inside. No TPU is needed."""

import json
import os
import subprocess
import sys

import pytest

from tests.entry import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled():
    library = os.environ.get("JAXNLP_LIBTPU", "")
    if not os.path.exists(library):
        pytest.skip("libtpu is not there; `make test-slow` installs it and sets JAXNLP_LIBTPU")
    env = {**os.environ, "TPU_LIBRARY_PATH": library, "JAX_PLATFORMS": "cpu"}
    env |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_NUM_CPU_DEVICES": "1"}
    found = {}
    for kernel in ("flash", "einsum"):
        command = [sys.executable, "-m", "tests.models.compile_tpu", kernel]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found[kernel] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_flash_attention_is_in_the_program_forward_and_backward(compiled):
    # In the scan over layers: forward, backward for dq, backward for dk and dv; remat="dots" runs the forward again.
    assert compiled["flash"]["kernels"] in (3, 4)
    assert compiled["einsum"]["kernels"] == 0


def test_flash_attention_does_not_keep_the_scores(compiled):
    # A layer's scores on one chip: rows (32 / 2) x heads (12 / 2) x 1024 x 1024 in float32.
    scores = 16 * 6 * 1024 * 1024 * 4
    assert compiled["einsum"]["temporaries"] - compiled["flash"]["temporaries"] > scores


def test_parameters_are_split_over_the_chips(compiled):
    # In float32 with two moments: embeddings over fsdp=2, the layers' matrices also over tensor=2, the rest whole.
    embeddings, layers = (2048 + 1024) * 768, 2 * 12 * 768**2
    wanted = 3 * 4 * (embeddings / 2 + layers / 4)
    assert compiled["flash"]["arguments"] == pytest.approx(wanted, rel=0.03)
