"""Compiles the gradient of attention over a sequence split over v5e:2x4; prints memory besides the arguments.

python -m tests.nn.compile_ring_tpu ring|einsum LENGTH. Needs libtpu (TPU_LIBRARY_PATH) and no TPU.
"""

import json
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.nn.kernels import Einsum
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.ring import Ring
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.rules import ACTIVATIONS


def main(kernel: str, length: int) -> None:
    attend, policy = {"ring": Ring(), "einsum": Einsum()}[kernel], Policy(compute_dtype="bfloat16")
    devices = topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
    mesh = make_mesh(MeshConfig(data=1, sequence=8), devices)
    split = NamedSharding(mesh, PartitionSpec(None, "sequence"))
    x = jax.ShapeDtypeStruct((1, length, 8, 128), jnp.bfloat16, sharding=split)
    loss = lambda q, k, v: attend(q, k, v, Mask(), policy=policy).astype(jnp.float32).sum()
    with jax.set_mesh(mesh), axis_rules(ACTIVATIONS):
        compiled = jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=(split,) * 3).lower(x, x, x).compile()
    text = compiled.as_text()
    result = {"temporaries": compiled.memory_analysis().temp_size_in_bytes, "gathers": text.count("all-gather(")}
    print(json.dumps({**result, "permutes": text.count("collective-permute-start(")}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
