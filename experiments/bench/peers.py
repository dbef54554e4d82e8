"""Installs the peers, each in its own virtual environment under .bench/, on first use."""

import os
import pathlib
import subprocess
import sys

from jaxnlp.errors import UserError
from jaxnlp.paths import local

FOLDER = pathlib.Path(".bench")
TORCH = ["torch==2.13.0", "transformers==5.23.0", "numpy"]
NANODO = ["jax==0.10.2", "flax==0.12.8", "optax==0.2.8", "numpy"]
SOURCES = {  # the measured commits
    "nanogpt": ("https://github.com/karpathy/nanoGPT", "3adf61e"),
    "nanodo": ("https://github.com/google-deepmind/nanodo", "10aefde"),
}


def environment(name: str, packages: list[str]) -> str:
    """The Python executable of a virtual environment with these packages, which is created if missing."""
    folder = FOLDER / name
    python = (folder / "bin" / "python").absolute()
    marker = folder / "installed"
    if not marker.exists() or marker.read_text() != " ".join(packages):
        print(f"installing {', '.join(packages)} in {folder} ...", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        marker.write_text(" ".join(packages))
    return str(python)


def checkout(name: str) -> str:
    """The folder of a peer's source: $NANOGPT or $NANODO if set, or a clone at the measured commit.

    Raises:
        UserError: the folder does not exist, or the repository cannot be cloned.
    """
    configured = os.environ.get(name.upper())
    if configured:
        if not local(configured).is_dir():
            raise UserError(f"{name.upper()}={configured}: no such folder; expected a checkout of {SOURCES[name][0]}")
        return str(local(configured).absolute())
    folder = FOLDER / f"{name}-source"
    if not folder.exists():
        url, commit = SOURCES[name]
        try:
            subprocess.run(["git", "clone", "--quiet", url, str(folder)], check=True)
            subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)
        except (subprocess.CalledProcessError, OSError) as e:
            raise UserError(f"{url}: cannot be cloned ({e}); set {name.upper()}=FOLDER to a checkout") from None
    return str(folder.absolute())
