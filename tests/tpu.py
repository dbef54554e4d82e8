"""Programs compiled for TPUs by libtpu, each in its own process, on any machine."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.entry import ROOT


def environment(full_effort: bool = False) -> dict[str, str]:
    """What such a process needs; skips the test where libtpu is not there.

    With the least of the compiler's effort a program is there in a third of the time, and sends the same; but its
    temporaries are up to a fifth smaller (configs/gpt/tpu.py:7b over v5e:16x16), as less of what it sends overlaps.
    """
    library = os.environ.get("JAXNLP_LIBTPU", "")
    if not os.path.exists(library):
        pytest.skip("libtpu is not there; `make test-slow` installs it and sets JAXNLP_LIBTPU")
    found = {**os.environ, "TPU_LIBRARY_PATH": library, "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    return found if full_effort else {**found, "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}


def compiled(module: str, *args: str, full_effort: bool = False) -> Any:
    """What `python -m module args` prints as JSON in its last line."""
    alone = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    env = {**environment(full_effort), **alone}
    done = subprocess.run([sys.executable, "-m", module, *args], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
