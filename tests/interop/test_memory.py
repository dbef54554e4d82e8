"""Loading needs little more memory than the parameters: the full file is never in memory besides them."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxnlp.interop.huggingface import save
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.sharding.functional import init_params


def write(folder: pathlib.Path, **sizes):
    config = GPTConfig(max_length=8, num_heads=4, **sizes)
    params = init_params(config.build(), jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    save(folder, config, params, max_shard_bytes=10**8)
    leaves = [x.nbytes for x in jax.tree.leaves(params)]
    return sum(leaves), max(leaves)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="reads /proc")
def test_peak_memory_is_the_parameters_and_the_largest_tensor(tmp_path):
    write(tmp_path / "small", vocab_size=16, embed_dim=16, num_layers=1)
    total, largest = write(tmp_path / "large", vocab_size=30000, embed_dim=1024, num_layers=8)
    assert json.loads((tmp_path / "large" / "model.safetensors.index.json").read_text())["metadata"]
    root = pathlib.Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.interop.peak", str(tmp_path / "small"), str(tmp_path / "large")]
    peak = int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)
    message = f"peak {peak / 1e6:.0f} MB: parameters {total / 1e6:.0f}, largest tensor {largest / 1e6:.0f}"
    assert 0.9 * total < peak < total + 1.5 * largest, message
    print(message)
