"""The devices of a plan: those of a named TPU topology, or the attached devices.

A program can be compiled for TPUs on a machine without one, because libtpu (the TPU compiler) runs anywhere. Its
version must be the one that `jax[tpu]` of the installed JAX pins; another version may fail to compile the same program.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from jaxnlp.errors import UserError
from jaxnlp.paths import local

TOPOLOGY_NAME = re.compile(r"(?:(\d+)\*)?(v4|v5e|v5p|v6e|tpu7x):(\d+(?:x\d+)*)$")
EXAMPLES = "v5e:4x4, v6e:16x16, v4:4x4x4, v5p:8x8x8, tpu7x:4x4x4, 2*v5e:16x16 (two slices), v5e:1 (one chip) or local"
TORUS_3D = ("v4", "v5p", "tpu7x")
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not query a cloud for the TPU type
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other processes may plan at the same time
    # A description of the local machine's TPU, which libtpu requires even if there is none.
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology. Must be called before JAX initialises its own devices.

    Args:
        name: see `EXAMPLES`; "local" is the attached accelerators, or the CPU devices if there are none.

    Raises:
        UserError: unknown topology; libtpu is missing or has another version than JAX requires.
    """
    import jax

    if name == "local":
        return jax.devices()
    match = TOPOLOGY_NAME.match(name)
    if not match:
        raise UserError(f"--topology={name}: no such topology; expected one as {EXAMPLES}")
    slices, family, shape = int(match[1] or 1), match[2], match[3]
    single_chip = set(shape.split("x")) == {"1"}  # libtpu has no topology of one chip
    libtpu_shape = ("2x2x1" if family in TORUS_3D else "2x2") if single_chip else shape
    if (libtpu_shape.count("x") == 2) != (family in TORUS_3D) or (single_chip and slices > 1):
        raise UserError(
            f"--topology={name}: expected {3 if family in TORUS_3D else 2} dimensions for {family}; as {EXAMPLES}"
        )
    find_libtpu()
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # without a TPU a cached program cannot be loaded
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if family in TORUS_3D:
        options["wrap"] = tuple(size != "1" for size in libtpu_shape.split("x"))
    from jax.experimental import topologies

    try:
        devices = list(topologies.get_topology_desc(f"{family}:{libtpu_shape}", platform="tpu", **options).devices)
    except Exception as e:  # the plugin documents no error type
        reason = str(e).splitlines()[0][:200]
        raise UserError(
            f"--topology={name}: libtpu has no such topology ({reason}); expected one as {EXAMPLES}"
        ) from None
    return devices[: 2 if family == "tpu7x" else 1] if single_chip else devices


def larger_topology(name: str) -> Callable[[int], tuple[str, list[Any]] | None] | None:
    """A function from a device count to (`--topology=...`, devices) of the same TPU family; None if not a TPU topology.

    The function returns None for a count without a topology.
    """
    match = TOPOLOGY_NAME.match(name)
    if not match:
        return None

    def of(count: int) -> tuple[str, list[Any]] | None:
        topology = topology_of_size(match[2], count)
        return None if topology is None else (f"--topology={topology}", topology_devices(topology))

    return of


def topology_of_size(family: str, count: int) -> str | None:
    """The name of a TPU topology with `count` devices; None if there is none.

    The number of chips must be a power of two, at least 4.
    """
    chips = count // 2 if family == "tpu7x" else count
    if chips < 4 or chips & (chips - 1):
        return None
    power = chips.bit_length() - 1
    if family in TORUS_3D:
        sides = [power // 3, (power + 1) // 3, (power + 2) // 3] if power > 2 else [1, 1, 0]
    else:
        sides = [power // 2, power - power // 2]
    if max(sides) > 4:
        return None
    return f"{family}:{'x'.join(str(2**side) for side in sides)}"


def find_libtpu() -> str:
    """Returns the path of libtpu.so and sets TPU_LIBRARY_PATH to it for JAX.

    Search order: TPU_LIBRARY_PATH, the installed package, the folder `tpu` of the environment (written by `make tpu`).

    Raises:
        UserError: libtpu is missing or has another version than JAX pins.
    """
    jax_version = importlib.metadata.version("jax")
    remedy = f'get it with `make tpu`, or `pip install "jax[tpu]=={jax_version}"`'
    if configured := os.environ.get("TPU_LIBRARY_PATH"):
        path = local(configured)
        if not path.is_file():
            raise UserError(f"TPU_LIBRARY_PATH={configured}: no such file; unset it, or {remedy}")
    else:
        spec = importlib.util.find_spec("libtpu")
        folders = [pathlib.Path(f) for f in (spec.submodule_search_locations or () if spec else ())]
        folders.append(pathlib.Path(sys.prefix) / "tpu" / "libtpu")
        path = next((f / "libtpu.so" for f in folders if (f / "libtpu.so").is_file()), None)
        if path is None:
            raise UserError(f"libtpu, the TPU compiler, is not installed; {remedy}")
    installed, required = libtpu_version(path), required_libtpu()
    if installed and required and not re.fullmatch(re.escape(required).replace(r"\*", ".*"), installed):
        raise UserError(f"libtpu {installed} ({path}): jax {jax_version} requires {required}; {remedy}")
    os.environ["TPU_LIBRARY_PATH"] = str(path)
    return str(path)


def libtpu_version(path: pathlib.Path) -> str | None:
    """The version of a libtpu.so, from the metadata folder beside its package; None if there is none."""
    names = (folder.name for folder in path.resolve().parent.parent.glob("libtpu-*.dist-info"))
    return next((name.removeprefix("libtpu-").removesuffix(".dist-info") for name in names), None)


def required_libtpu() -> str | None:
    """The version of libtpu that `jax[tpu]` requires, such as "0.0.42.*"; None if it requires none."""
    for requirement in importlib.metadata.requires("jax") or ():
        if match := re.match(r"libtpu\s*==\s*([\d.*]+)", requirement):
            return match[1]
    return None
