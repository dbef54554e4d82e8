"""Compiles the training step of `configs/gpt/gpt2.py:small-tpu` for a TPU topology; prints memory and kernels.

python -m tests.models.compile_tpu flash|einsum. Needs libtpu (TPU_LIBRARY_PATH) and no TPU.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
from jax.experimental import topologies

from configs.gpt.gpt2 import get_config
from jaxnlp.nn.kernels import Einsum, Flash
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import FSDP, Sharding
from jaxnlp.training.step.program import build


def main(kernel: str) -> None:
    e = get_config("small-tpu")
    assert isinstance(e.model.attention, Flash)
    attention = {"flash": e.model.attention, "einsum": Einsum()}[kernel]
    # A small vocabulary, so that attention's memory is not hidden by that of the logits.
    e.model = dataclasses.replace(e.model, num_layers=2, vocab_size=2048, attention=attention)
    e.data.batch_size, e.accum_steps = 32, 1
    # Heads are sharded over tensor, so the kernel runs on a part of them; parameters over fsdp.
    params = {**FSDP, "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor"}
    e.sharding = Sharding(mesh=MeshConfig(data=1, fsdp=2, tensor=2), params=params)
    program = build(e, topologies.get_topology_desc("v5e:2x2", platform="tpu").devices)
    shape = (e.data.batch_size, e.data.seq_len)
    dtypes = {"tokens": np.int32, "targets": np.int32, "weights": np.float32, "segment_ids": np.int32}
    dtypes["positions"] = np.int32
    batch = {k: jax.ShapeDtypeStruct(shape, d, sharding=program.batch_sharding) for k, d in dtypes.items()}
    compiled = program.step.lower(program.abstract, batch).compile()
    memory = compiled.memory_analysis()
    result = {
        "kernels": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
