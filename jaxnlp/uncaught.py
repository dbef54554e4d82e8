"""The boundary of every entry point: an exception ends it with one line on stderr, and never with a stack trace.

    status 2      an error that the user can fix: UserError, or a known error of the system or of JAX
    status 1      any other exception; its stack trace is written to a file that the line names
    status 130    Ctrl-C
    status 141    the reader of the output has gone, as in `... | head`; nothing is printed

With JAXNLP_TRACEBACK=1 the stack trace is printed as well.
"""

import contextlib
import errno
import io
import os
import site
import sys
import tempfile
import traceback
from collections.abc import Iterator

from jaxnlp.errors import UserError, is_panic, reason

BROKEN_PIPE = 128 + 13  # SIGPIPE
DEVICES = "jax/_src/xla_bridge.py"
"""The file of JAX that starts the devices. Its exceptions have no common type, and some no message."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Context of an entry point: exceptions become a line on stderr and an exit status."""
    _open_outputs()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BaseException as e:
        status, line = explained(e)
        if status is None:
            raise
        if isinstance(e, OSError) and e.errno in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            discard(1)  # the rest of its buffer cannot be written either
        show(e, line)
        sys.exit(status)


def explained(error: BaseException) -> tuple[int | None, str]:
    """(exit status, line) of an exception; status None for one that is not ours to end."""
    if isinstance(error, UserError):
        return 2, f"error: {_line(error)}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "\ninterrupted"
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE, ""
    if not isinstance(error, Exception) and not is_panic(error):
        return None, ""
    known = _known(error)
    if known is not None:
        return 2, f"error: {known}"
    name, text = type(error).__name__, reason(error)
    text = text if text.startswith(name) else f"{name}: {text}"
    return 1, f"error: {text} (unexpected{_place(error)}{_saved(error)})"


def show(error: BaseException, line: str) -> None:
    """Prints the line of an exception, and with JAXNLP_TRACEBACK=1 its stack trace before it."""
    with contextlib.suppress(OSError):  # standard error may be a file on a full disk
        _show(error, line)


def _show(error: BaseException, line: str) -> None:
    if os.environ.get("JAXNLP_TRACEBACK") == "1" and not isinstance(error, (KeyboardInterrupt, BrokenPipeError)):
        traceback.print_exception(error)
    if line:
        print(line, file=sys.stderr, flush=True)


def discard(descriptor: int) -> None:
    """Discards what is written to a file descriptor from now on."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _known(error: BaseException) -> str | None:
    """A line for an exception of the system or of JAX that a user can fix; None for others."""
    text = _line(error)
    if any(frame.f_code.co_filename.endswith(DEVICES) for frame, _ in traceback.walk_tb(error.__traceback__)):
        platforms = os.environ.get("JAX_PLATFORMS")
        setting = f"JAX_PLATFORMS={platforms}" if platforms else "devices"
        return f"{setting}: cannot be used here ({reason(error)}); unset JAX_PLATFORMS, or install its plugin for JAX"
    if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:
        remedy = "set a smaller data.batch_size, model.remat='full' or a larger accum_steps, or use more devices"
        return f"a device is out of memory ({reason(error)}); {remedy}"
    if isinstance(error, MemoryError):
        return f"out of memory ({reason(error)}); use a smaller model or corpus, or a machine with more memory"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input or output'}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        return f"{text}; install the package, or add its folder to PYTHONPATH"
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _place(error: BaseException) -> str:
    """The innermost place that is not in an installed package, as " at hooks.py:12"."""
    installed = (*site.getsitepackages(), os.path.dirname(os.__file__), "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(installed)]
    return f" at {os.path.relpath(own[-1].filename)}:{own[-1].lineno}" if own else ""


def _saved(error: BaseException) -> str:
    """Writes the stack trace to a file. Returns "; stack trace in FILE", or the trace's absence explained."""
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="jaxnlp-", suffix=".txt", delete=False, errors="replace") as file:
            file.write(trace)
        return f"; stack trace in {file.name}"
    except OSError:
        return "; JAXNLP_TRACEBACK=1 prints the stack trace"


class _Diagnostics(io.TextIOWrapper):
    """Standard error whose reader may go away, as in `2>&1 | head`: a run continues, and its messages are discarded."""

    def __init__(self, replaced: io.TextIOWrapper):
        raw = io.BufferedWriter(io.FileIO(replaced.fileno(), "wb", closefd=False))
        super().__init__(raw, replaced.encoding, "backslashreplace", line_buffering=True)
        self._replaced = replaced  # it would close the file when it is no longer referenced

    def write(self, text: str) -> int:
        with self._still_works():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._still_works():
            super().flush()

    @contextlib.contextmanager
    def _still_works(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            discard(self.fileno())
            super().flush()


def _open_outputs() -> None:
    """Replaces closed outputs, and makes the others write what they can. A notebook's own outputs are left as they are.

    Characters that the encoding lacks, as under LC_ALL=C, are written as \\xe9.
    """
    if sys.stdout is None:  # closed by the shell, as with >&-
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = _Diagnostics(sys.stderr)
