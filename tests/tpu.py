"""Programs compiled for TPUs by libtpu, on any machine. One process starts libtpu and compiles all that is asked."""

import atexit
import contextlib
import functools
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from typing import Any

import pytest

from tests.cpu_time import watch
from tests.entry import ROOT

# With the least of the compiler's effort a program is there in a third of the time, and sends the same; but its
# temporaries are up to a fifth smaller (configs/gpt/tpu.py:7b over v5e:16x16), as less of what it sends overlaps.
LEAST, FULL = -1.0, 0.0


def environment() -> dict[str, str]:
    """What a process that compiles for TPUs needs; skips the test where libtpu is not there."""
    library = os.environ.get("JAXNLP_LIBTPU", "")
    if not os.path.exists(library):
        pytest.skip("libtpu is not there; `make test-slow` installs it and sets JAXNLP_LIBTPU")
    settings = {"TPU_LIBRARY_PATH": library, "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    return {**os.environ, **settings, "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": str(LEAST)}


def compiled(module: str, *args: str, effort: float = LEAST) -> Any:
    """What `python -m module args` prints as JSON in its last line."""
    process = server()
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps([effort, module, *args]) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"the process that compiles for TPUs ended with {process.wait()} at {module} {' '.join(args)}"
    result = json.loads(answer)
    assert "error" not in result, result["error"]
    return json.loads(result["out"].splitlines()[-1])


@functools.cache
def server() -> subprocess.Popen:
    """The process, which lives as long as this one: to start libtpu takes longer than most of the compiles."""
    alone = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = {**environment(), **alone}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tpu"], cwd=ROOT, env=env, stderr=subprocess.DEVNULL, **pipes
    )
    atexit.register(process.kill)
    watch(process.pid)
    return process


def serve() -> None:
    """Runs a module for each line of standard input, `[effort, "module", "argument", ...]`; answers what it printed."""
    import jax

    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    for line in sys.stdin:
        effort, module, *args = json.loads(line)
        jax.config.update("jax_exec_time_optimization_effort", effort)
        sys.argv = [module, *args]
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            result = {"out": out.getvalue()}
        except Exception:
            result = {"error": traceback.format_exc()[-3000:]}
        print(json.dumps(result), file=answers, flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    serve()
