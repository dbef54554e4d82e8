"""The tests' cache, shared by all clones: compiled programs, corpora and durations.

The folder is `$XDG_CACHE_HOME/jaxnlp/tests`, or `~/.cache/jaxnlp/tests`, and can be deleted at any time.
"""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDER = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "jaxnlp" / "tests"
DAYS_KEPT = 14


def programs(flags: str) -> pathlib.Path:
    """The folder of compiled programs; one for each set of versions, XLA flags and processor instructions."""
    versions = [f"{name}-{importlib.metadata.version(name)}" for name in ("jax", "jaxlib")]
    return FOLDER / "xla" / "-".join([*versions, f"py{platform.python_version()}", _fingerprint(flags, _processor())])


def data() -> pathlib.Path:
    """The folder of corpora and tokenizers, by a hash of the code that makes them; removes those long unused."""
    sources = sorted((ROOT / "jaxnlp" / "data").rglob("*.py"))
    folder = FOLDER / "data" / _fingerprint(*(path.read_text() for path in sources))
    for other in folder.parent.glob("*"):
        if other != folder and time.time() - other.stat().st_mtime > DAYS_KEPT * 24 * 3600:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    return folder


def _fingerprint(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _processor() -> str:
    """The processor's instruction sets: a program compiled for others may not run here."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
