"""Compiles the gradients of a small GPT for one v5e chip under remat policies; prints memory besides the arguments.

python -m tests.nn.compile_remat_tpu none dots ... Needs libtpu (TPU_LIBRARY_PATH) and no TPU.
"""

import dataclasses
import json
import sys

from jax.experimental import topologies

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.policy import Policy
from jaxnlp.planning.gradients import compiled_bytes, lowered_gradients
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build


def main(*policies: str) -> None:
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[:1]
    precision = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")
    model = GPTConfig(vocab_size=256, max_length=512, num_layers=8, num_heads=2, embed_dim=256, scan_layers=True)
    model = dataclasses.replace(model, policy=precision)
    e = Experiment(model=model, data=DataConfig(seq_len=512, batch_size=16), num_steps=10)
    memory = {}
    for policy in policies:
        program = build(dataclasses.replace(e, model=dataclasses.replace(model, remat=policy)), devices)
        memory[policy] = compiled_bytes(lowered_gradients(program))
    print(json.dumps(memory))


if __name__ == "__main__":
    main(*sys.argv[1:])
