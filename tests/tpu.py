"""Programs compiled for TPUs by libtpu, on any machine. One process starts libtpu and compiles all of them."""

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

# The least compiler effort takes a third of the time and gives the same communication, but temporaries up to a fifth
# smaller (configs/gpt/tpu.py:7b over v5e:16x16), since less communication overlaps.
LEAST, FULL = -1.0, 0.0


def environment() -> dict[str, str]:
    """The environment of a process that compiles for TPUs; skips the test without libtpu."""
    library = os.environ.get("JAXNLP_LIBTPU", "")
    if not os.path.exists(library):
        pytest.skip("libtpu is not there; `make test-slow` installs it and sets JAXNLP_LIBTPU")
    settings = {"TPU_LIBRARY_PATH": library, "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    return {**os.environ, **settings, "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": str(LEAST)}


def compiled(module: str, *args: str, effort: float = LEAST) -> Any:
    """The JSON in the last line that `python -m module args` prints."""
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
    """The process, which runs as long as this one, since starting libtpu takes longer than most compiles."""
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
    """Runs a module for each line of standard input, `[effort, "module", "argument", ...]`; answers with its output."""
    import jax

    answers, sys.stdout = sys.stdout, sys.stderr  # output of libraries is not part of the answer
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
