"""Compiles a pipelined gradient for v5e:2x4, data 2 and stage 4; prints its temporaries and collectives.

python -m tests.training.compile_pipeline_tpu gpipe|1f1b|circular MICROBATCHES ...

Needs libtpu (TPU_LIBRARY_PATH), no TPU.
"""

import functools
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.nn.policy import Policy
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.planning.hlo import collectives
from jaxnlp.sharding.functional import abstract_params, make_apply
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.pipeline import named_schedule
from jaxnlp.sharding.presets import PP
from jaxnlp.sharding.rules import shardings
from jaxnlp.training.step import pipeline_step

SIZES = {"data": 2, "stage": 4}
T, ROWS = 512, 16  # of a microbatch, half of them on each device of the data axis
MODEL = GPTConfig(
    vocab_size=512,
    max_length=T,
    num_layers=8,
    num_heads=2,
    embed_dim=256,
    scan_layers=True,
    policy=Policy(compute_dtype="bfloat16"),
)


def main(schedule: str, microbatches: int) -> dict[str, Any]:
    m, batch_axes = microbatches, ("data", "fsdp")
    mesh = make_mesh(MeshConfig(**SIZES), topologies.get_topology_desc("v5e:2x4", platform="tpu").devices)
    module = MODEL.build()
    shapes, axes = abstract_params(module, *MODEL.example_inputs(ROWS, T))
    layout, rows = shardings(shapes, axes, PP.params, mesh), NamedSharding(mesh, PartitionSpec(batch_axes))
    abstract = lambda tree, layouts: jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layouts
    )
    ints = jax.ShapeDtypeStruct((ROWS * m, T), jnp.int32, sharding=rows)
    batch = {"tokens": ints, "targets": ints, "weights": jax.ShapeDtypeStruct(ints.shape, jnp.float32, sharding=rows)}
    gradient = functools.partial(
        pipeline_step.sum_gradients,
        make_apply(module),
        CausalLM(),
        schedule=named_schedule(schedule),
        batch_axes=batch_axes,
    )
    step = lambda params, batch: gradient(params, batch, jax.random.key(0), m, None, layout)
    with jax.set_mesh(mesh), axis_rules(PP.activations):
        compiled = jax.jit(step).lower(abstract(shapes, layout), batch).compile()
    traffic = collectives(compiled.as_text())
    reduced = [c for c in traffic if c.kind in ("all-reduce", "reduce-scatter") and "data" in c.axes(SIZES)]
    return {
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "ticks": sum(c.count for c in traffic if c.kind == "collective-permute" and c.count > 1),
        "reduced over data": [(c.kind, c.bytes, c.count) for c in reduced],
        "a stage's gradients": sum(x.size * 4 for x in jax.tree.leaves(shapes["blocks"])) // SIZES["stage"],
    }


if __name__ == "__main__":
    print(json.dumps([main(sys.argv[1], int(m)) for m in sys.argv[2:]]))
