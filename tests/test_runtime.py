"""What `runtime.configure_jax` sets is in effect: a program's scratch memory is faulted in once, not at every call."""

import json
import os
import platform
import statistics
import subprocess
import sys

import pytest

from tests.entry import ROOT

PROGRAM = """
import json, resource
from jaxnlp import runtime
runtime.configure_jax()
import jax, jax.numpy as jnp
def scratch(x):  # an array of 128 MB that no fusion removes
    return jnp.cumsum(jnp.broadcast_to(x, (1 << 14, 2048)), axis=1)[:, ::3].sum()
step = jax.jit(scratch)
x = jnp.arange(2048, dtype=jnp.float32)
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    float(step(x))
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps({"faults": faults, "cache": jax.config.jax_compilation_cache_dir}))
"""


def run(tmp_path, **env):
    cleared = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "GLIBC"))}
    env = {**cleared, "JAX_PLATFORMS": "cpu", "JAXNLP_CACHE": str(tmp_path), **env}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_scratch_memory_is_kept_between_calls_unless_declined(tmp_path):
    default = run(tmp_path)
    assert statistics.median(default["faults"][1:]) < 2000  # of some 30,000 pages an array
    assert default["cache"] == str(tmp_path / "xla") and any((tmp_path / "xla").iterdir())
    declined = run(tmp_path, JAXNLP_ALLOCATOR="system", JAX_CPU_ENABLE_ASYNC_DISPATCH="true")
    assert statistics.median(declined["faults"][1:]) > 20_000
