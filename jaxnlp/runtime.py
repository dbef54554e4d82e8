"""What a process needs to be told before JAX makes its first array. Call `configure_jax()` first in an entry point.

On CPU the memory allocator matters more than any flag of the compiler. XLA allocates its
scratch memory anew at each step; glibc by default hands large blocks back to the kernel, so each
step faults every page in again: a third of a small model's step. `configure_jax` tells glibc to
keep them, and asks JAX to run programs on the calling thread, whose heap can grow without bound
(glibc's heaps of other threads end at 64 MiB and go back to the kernel all the same).

Switches: JAXNLP_ALLOCATOR=system leaves the allocator alone, JAX_CPU_ENABLE_ASYNC_DISPATCH=true
keeps JAX's own dispatch, JAX_ENABLE_COMPILATION_CACHE=false compiles anew each time. None
touches a GPU's or TPU's memory or dispatch.
"""

import ctypes
import os
import pathlib
import platform
import shutil
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>


def configure_jax() -> None:
    """Sets the allocator, the dispatch and the compile cache; a variable already set is left as it is."""
    if "jax" in sys.modules and os.environ.get("JAXNLP_ALLOCATOR") != "system":
        print(
            "note: jax was imported before jaxnlp.runtime.configure_jax(); its settings come too late", file=sys.stderr
        )
    keep_freed_memory()
    cache = pathlib.Path(os.environ.get("JAXNLP_CACHE") or "~/.cache/jaxnlp").expanduser()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    import jax

    asynchronous = os.environ.get("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false").lower() in ("1", "true")
    jax.config.update("jax_cpu_enable_async_dispatch", asynchronous)  # JAX itself reads no variable for it


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed blocks of any size. False where that cannot be done, or was declined."""
    if os.environ.get("JAXNLP_ALLOCATOR", "keep") != "keep" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Older glibcs refuse a threshold above 32 MiB; that much still helps small models.
    threshold = mallopt(M_MMAP_THRESHOLD, 2**31 - 1) == 1 or mallopt(M_MMAP_THRESHOLD, 32 << 20) == 1
    return threshold & (mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1) & (mallopt(M_TOP_PAD, 64 << 20) == 1)


def python() -> str:
    """How a person in this folder and shell would call the Python that runs: "python", or ".venv/bin/python"."""
    if shutil.which("python") == sys.executable:
        return "python"
    path = pathlib.Path(sys.executable)
    return str(path.relative_to(pathlib.Path.cwd())) if path.is_relative_to(pathlib.Path.cwd()) else str(path)
