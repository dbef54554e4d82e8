"""The boundary of entry points: whatever the exception, one line and an exit status; and no report is lost."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

from jaxnlp.errors import UserError, check_text, encoding, reading, reason
from tests.entry import ROOT, run

SMALL = ROOT / "tests" / "experiments" / "small.py"
BEGIN = "import json, os, sys\nfrom jaxnlp.uncaught import one_line_errors\nwith one_line_errors():\n    "


def python(code: str, **kwargs) -> subprocess.CompletedProcess:
    """Runs the code inside the boundary, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **kwargs.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **kwargs}
    return subprocess.run([sys.executable, "-c", BEGIN + code], env=env, text=True, cwd=ROOT, **pipes)


ENDINGS = {
    "from jaxnlp.errors import UserError; raise UserError('a:\\n  b')": (2, "error: a: b"),
    "raise KeyboardInterrupt": (130, "interrupted"),
    "open('/no/such')": (2, "error: /no/such: No such file or directory"),
    "import no_such_package": (2, "error: No module named 'no_such_package'; install the package"),
    "raise MemoryError('x')": (2, "error: out of memory (MemoryError: x)"),
    "raise RuntimeError('RESOURCE_EXHAUSTED: 8 GB')": (2, "error: a device is out of memory"),
    "{}['key']": (1, "error: KeyError: 'key' (unexpected"),
    "sys.exit(7)": (7, ""),
    "class PanicException(BaseException): pass\n    raise PanicException('in Rust')": (
        1,
        "error: PanicException: in Rust",
    ),
}


@pytest.mark.parametrize("code", ENDINGS)
def test_every_exception_is_one_line(code):
    status, words = ENDINGS[code]
    done = python(code)
    assert done.returncode == status and "Traceback" not in done.stderr and done.stdout == ""
    assert done.stderr.strip().startswith(words) and len(done.stderr.strip().splitlines()) <= 1, done.stderr


@pytest.mark.parametrize(("variable", "value"), [("JAX_ENABLE_X64", "maybe"), ("JAX_NUM_CPU_DEVICES", "abc")])
def test_a_variable_that_jax_refuses(variable, value):
    done = python("from jaxnlp import runtime; runtime.configure_jax()", env={variable: value})
    assert done.returncode == 2 and "error: JAX cannot be imported: " in done.stderr and value in done.stderr
    assert "correct or unset this variable" in done.stderr and "Traceback" not in done.stderr


def test_the_stack_trace_of_an_unexpected_exception_is_in_the_file_that_the_line_names():
    code = "json.loads('[')"
    line = python(code).stderr.strip()
    path = pathlib.Path(re.search(r"stack trace in (\S+)\)$", line)[1])
    assert path.read_text().startswith("Traceback") and "JSONDecodeError" in path.read_text()
    path.unlink()
    printed = python(code, env={"JAXNLP_TRACEBACK": "1"}).stderr
    assert printed.startswith("Traceback") and printed.strip().splitlines()[-1].startswith("error: JSONDecodeError")


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    return write_end


def test_a_closed_pipe_ends_a_printing_program_in_silence():
    for code in ("print('x' * 100)", "[print('x' * 100) for _ in range(10_000)]"):
        done = python(code, stdout=closed_pipe())
        assert done.returncode == 141 and done.stderr == ""


def test_a_closed_pipe_of_messages_does_not_end_the_work(tmp_path):
    code = f"[print('message', file=sys.stderr, flush=True) for _ in range(3)]; open({str(tmp_path / 'done')!r}, 'w')"
    done = python(code, stderr=closed_pipe())
    assert done.returncode == 0 and (tmp_path / "done").exists()


def test_a_full_device_and_closed_outputs():
    with open("/dev/full", "w") as full:
        done = python("print('x')", stdout=full)
    assert done.returncode == 2 and done.stderr.strip() == "error: input or output: No space left on device"
    command = [sys.executable, "-c", BEGIN + "print('x'); print('y', file=sys.stderr)"]
    shell = ["bash", "-c", '"$@" >&- 2>&-', "bash", *command]
    assert subprocess.run(shell, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_text_that_the_encoding_lacks_is_escaped():
    done = python("print('caf\\xe9 \\u4e2d')", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout == "caf\\xe9 \\u4e2d\n"


def test_a_platform_without_its_device():
    done = python("import jax; jax.devices()", env={"JAX_PLATFORMS": "cpux"})
    assert done.returncode == 2 and done.stderr.startswith("error: JAX_PLATFORMS=cpux: cannot be used here (")
    assert len(done.stderr.splitlines()) == 1


def test_a_taken_coordinator_port(corpus, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        place = (f"--coordinator_address=localhost:{port}", "--num_processes=2", "--process_id=0", "--join_timeout=9")
        done = run("experiments.train", f"--config={SMALL}:{corpus}", f"--workdir={tmp_path / 'run'}", *place)
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1
    assert f"process 0 cannot listen at port {port} (Address already in use); end the process that listens" in done.err


@pytest.mark.parametrize("port", ["0", "65536", "\N{SUPERSCRIPT TWO}"])
def test_a_port_that_does_not_exist(port):
    done = run("experiments.train", f"--coordinator_address=localhost:{port}", "--num_processes=2", "--process_id=0")
    assert done.code == 2 and "expected host:port of process 0" in done.err


LATE = """
from tests.experiments import late, small


def get_config(corpus):
    e = small.get_config(corpus)
    e.num_steps, e.eval_every, e.checkpoint_every = 4, 0, 0
    e.evaluators = (late.Fails(),)
    return e
"""


def test_an_error_after_the_training_does_not_cost_the_report(corpus, tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    done = run("experiments.train", f"--config={tmp_path / 'late.py'}:{corpus}", f"--workdir={tmp_path / 'run'}")
    assert done.code == 1 and "Traceback" not in done.err
    assert "this model" in done.out and "a sample, from" in done.out and "next:" in done.out, done.err
    assert done.err.strip().splitlines()[-1].startswith("error: ValueError: broken evaluator (unexpected at ")
    assert (tmp_path / "run" / "checkpoints" / "4").is_dir()
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["kind"] == "full_validation"


def test_a_part_of_the_report_that_fails_costs_no_other(corpus, tmp_path):
    from jaxnlp.training.report import Parts

    parts = Parts()
    assert parts.made("sample", lambda: 1 / 0, []) == [] and parts.made("speed", lambda: "fast", "") == "fast"
    assert parts.missing == ["", "no sample: division by zero"]


def test_reading_turns_every_exception_into_a_user_error():
    class PanicException(BaseException):
        pass

    for error, words in (
        (KeyError("k"), "f: not a table (KeyError: 'k')"),
        (PanicException("index out of\nbounds"), "f: not a table (index out of bounds)"),
        (OSError(5, "Input/output error"), "f: not a table (Input/output error)"),
        (UnicodeDecodeError("utf-8", b"a\xe9", 1, 2, "x"), "f: not a table (not UTF-8 text, byte 0xe9)"),
        (RecursionError("deep"), "f: not a table (deep)"),
        (UserError("already clear"), "already clear"),
    ):
        with pytest.raises(UserError) as caught, reading("f", "not a table"):
            raise error
        assert str(caught.value) == words
    with pytest.raises(KeyboardInterrupt), reading("f", "not a table"):
        raise KeyboardInterrupt
    assert len(reason(ValueError("long " * 1000))) < 400


def test_text_that_is_not_utf8():
    check_text("--prompt", "café")
    for text, words in (("caf\udce9", "byte 0xe9 at character 3"), ("\ud83d", "an unpaired surrogate at character 0")):
        with pytest.raises(UserError, match=words), encoding([text]):
            text.encode()
    with pytest.raises(ZeroDivisionError), encoding(["fine"]):
        raise ZeroDivisionError
