"""Process-level JAX settings. Call `configure_jax()` first in an entry point, before JAX is imported.

On CPU the memory allocator matters more than any compiler flag. XLA allocates its scratch memory anew at each step, and
glibc by default returns large blocks to the kernel, so each step faults in every page again. This takes a third of a
small model's step time. `configure_jax` makes glibc keep freed blocks. It also makes JAX run programs on the calling
thread, whose heap can grow without bound (glibc limits the heaps of other threads to 64 MiB and returns them to the
kernel).

Switches: JAXNLP_ALLOCATOR=system leaves the allocator unchanged, JAX_CPU_ENABLE_ASYNC_DISPATCH=true keeps JAX's
asynchronous dispatch, and JAX_ENABLE_COMPILATION_CACHE=false disables the compilation cache. None of them affects GPU
or TPU memory or dispatch.
"""

import ctypes
import os
import pathlib
import platform
import shlex
import shutil
import sys

from jaxnlp.errors import UserError, reason
from jaxnlp.paths import cache_folder, expanded, local, writable
from jaxnlp.program_cache import remove_truncated

MIN_FREE = 16 << 20
"""Bytes that must be free for the compilation cache; a program of a large model takes some megabytes."""
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


def configure_jax() -> None:
    """Configures the allocator, CPU dispatch and compilation cache. Environment variables take precedence.

    A variable with a value that JAX refuses, as JAX_ENABLE_X64=maybe, ends the process with one line and status 2.
    """
    if "jax" in sys.modules and os.environ.get("JAXNLP_ALLOCATOR") != "system":
        print(
            "note: jax was imported before jaxnlp.runtime.configure_jax(), so the settings have no effect",
            file=sys.stderr,
        )
    keep_freed_memory()
    _choose_compilation_cache()
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    try:
        import jax
    except ValueError as e:  # JAX reads its variables when it is imported, before `cli.run` of an entry point
        print(f"error: JAX cannot be imported: {reason(e)}; correct or unset this variable", file=sys.stderr)
        sys.exit(2)

    asynchronous = os.environ.get("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false").lower() in ("1", "true")
    jax.config.update("jax_cpu_enable_async_dispatch", asynchronous)  # JAX does not read this variable itself


def _choose_compilation_cache() -> None:
    """Sets the folder of JAX's compilation cache, or disables it, with a note, if the folder cannot be written."""
    try:
        programs = expanded(os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache_folder() / "xla")
        missing = None if "://" in programs else _prepared(local(programs))
    except UserError as e:
        programs, missing = None, str(e)
    if programs is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    if missing is not None:  # JAX would warn at every compilation
        print(f"note: compiled programs are not cached: {missing}", file=sys.stderr)
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"


def _prepared(programs: pathlib.Path) -> str | None:
    """Removes truncated programs from the cache. Returns why it cannot be written, or None."""
    if not writable(programs):
        return f"{programs} cannot be written"
    remove_truncated(programs)
    existing = next(path for path in (programs.absolute(), *programs.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    return f"the disk of {programs} is full ({free / 1e6:.1f} MB are free)" if free < MIN_FREE else None


def keep_freed_memory() -> bool:
    """Makes glibc keep freed blocks of any size. Returns False if unsupported or disabled by JAXNLP_ALLOCATOR."""
    if os.environ.get("JAXNLP_ALLOCATOR", "keep") != "keep" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older glibc versions reject a threshold above 32 MiB; 32 MiB still helps small models.
    threshold = mallopt(M_MMAP_THRESHOLD, 2**31 - 1) == 1 or mallopt(M_MMAP_THRESHOLD, 32 << 20) == 1
    return threshold & (mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1) & (mallopt(M_TOP_PAD, 64 << 20) == 1)


def python() -> str:
    """The command that starts the running Python from the current folder: "python", or a path as ".venv/bin/python"."""
    if shutil.which("python") == sys.executable:
        return "python"
    path = pathlib.Path(sys.executable)
    return str(path.relative_to(pathlib.Path.cwd())) if path.is_relative_to(pathlib.Path.cwd()) else str(path)


def command(program: str, *options: str) -> str:
    """The command that starts a program of `experiments`, to be pasted into a shell.

    options: already quoted; see `option`.
    """
    return " ".join([shell_quoted(python()), "-m", f"experiments.{program}", *options])


def option(name: str, value: object) -> str:
    """A command-line option for a shell: `--name=value`, with the value in quotes if the shell would change it."""
    return f"--{name}={shell_quoted(str(value))}"


def shell_quoted(text: str) -> str:
    """Quotes a text for the shell; control characters use $'...', so that it stays one line."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _escape(c) for c in escaped) + "'"


def _escape(character: str) -> str:
    """The UTF-8 bytes of a character, or the raw byte of a surrogate escape, as bash and zsh read them in $'...'."""
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))
