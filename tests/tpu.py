"""Programs compiled for TPUs by libtpu, each in its own process, on any machine."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.entry import ROOT


def environment() -> dict[str, str]:
    """What such a process needs; skips the test where libtpu is not there."""
    library = os.environ.get("JAXNLP_LIBTPU", "")
    if not os.path.exists(library):
        pytest.skip("libtpu is not there; `make test-slow` installs it and sets JAXNLP_LIBTPU")
    return {**os.environ, "TPU_LIBRARY_PATH": library, "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}


def compiled(module: str, *args: str) -> Any:
    """What `python -m module args` prints as JSON in its last line."""
    env = {**environment(), "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run([sys.executable, "-m", module, *args], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
