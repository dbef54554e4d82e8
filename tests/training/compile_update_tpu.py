"""Compiles a ZeRO 2 step for v5e:2x2; prints the bytes of its temporaries and of the parameters.

python -m tests.training.compile_update_tpu. Needs libtpu (TPU_LIBRARY_PATH) and no TPU.
"""

import json

import jax
from jax.experimental import topologies

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.policy import Policy
from jaxnlp.optim import OptimConfig
from jaxnlp.planning.gradients import compiled_bytes
from jaxnlp.planning.planner import step_batch
from jaxnlp.sharding.presets import ZERO2
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

POLICY = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")


def main() -> None:
    model = GPTConfig(vocab_size=512, max_length=128, num_layers=8, num_heads=8, embed_dim=1024, policy=POLICY)
    model.scan_layers, model.remat = True, "full"
    data, optim = DataConfig(seq_len=128, batch_size=4), OptimConfig(master_dtype="float32")
    e = Experiment(model=model, data=data, optim=optim, sharding=ZERO2.over(fsdp=4), num_steps=10)
    program = build(e, topologies.get_topology_desc("v5e:2x2", platform="tpu").devices)
    memory = compiled_bytes(program.step.lower(program.abstract, step_batch(program)))
    assert memory is not None
    params = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract.params))
    print(json.dumps({"temporaries": memory["temporaries"], "parameters": params}))


if __name__ == "__main__":
    main()
