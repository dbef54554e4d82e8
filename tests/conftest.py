"""Shared set-up: eight virtual CPU devices, a persistent compile cache, and entry points run in forks."""

import gc
import os
import pathlib
import sys

from tests import cache

pytest_plugins = ["tests.durations", "tests.selection", "tests.tiers"]

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAXNLP_ALLOCATOR"] = "system"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Most of a first run would be compiles, of programs so small that neither LLVM's optimizations nor the newer way of
# emitting fusions (a third of what is left) is worth it, nor their split for several threads (a quarter of the rest).
# And where eight devices share two busy cores, XLA ends the process when one of them is 40 seconds late.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache.programs(os.environ["XLA_FLAGS"]))
if not os.environ.get("JAXNLP_CACHE"):
    os.environ["JAXNLP_CACHE"] = str(cache.data())
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # where each operation was written takes a sixth of a compile
os.environ["OMP_NUM_THREADS"] = "1"  # torch's threads would wait for each other in a loop, on cores that others use
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the entry points below are forked
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402


def pytest_collection_finish() -> None:
    """Excludes imported objects, which are never freed, from garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Each compiled program maps memory, and a process may have 65,530 maps: beyond them XLA ends it with a fault."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> pathlib.Path:
    """A folder with a small text corpus: 60 documents of a few lines, train.txt and validation.txt."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    words = [
        "def",
        "return",
        "self",
        "value",
        "for",
        "in",
        "if",
        "not",
        "None",
        "import",
        "class",
        "=",
        "(",
        ")",
        ":",
        "x",
    ]
    for name, count in (("train", 60), ("validation", 12)):
        documents = [" ".join(random.choice(words, size=random.integers(5, 60))) for _ in range(count)]
        (folder / f"{name}.txt").write_text("\n\n".join(documents) + "\n")
    return folder
