"""Compiles a small GPT's step for four TPU chips with the optimizer state in either memory; prints memory figures.

python -m tests.training.compile_offload ZERO3 stacked|unrolled|xl. Needs libtpu (TPU_LIBRARY_PATH) and no TPU. "xl" is
GPT-2 of 1.5 billion parameters at its length, which takes minutes.
"""

import dataclasses
import json
import sys

import jax
from jax.experimental import topologies

from configs.gpt.gpt2 import get_config
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.policy import Policy
from jaxnlp.optim import OptimConfig
from jaxnlp.planning.planner import compiled_memory, step_batch
from jaxnlp.sharding.presets import PRESETS
from jaxnlp.sharding.rules import MEMORIES
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

CHIPS = 4


def main(preset: str, layers: str) -> None:
    devices, result = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices, {}
    policy = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")
    small = GPTConfig(
        vocab_size=2048,
        max_length=128,
        num_layers=8 if layers == "stacked" else 2,
        num_heads=8,
        embed_dim=1024,
        scan_layers=layers == "stacked",
        remat="full",
        policy=policy,
    )
    large = dataclasses.replace(get_config("xl-tpu").model, remat="full", policy=policy)
    model, rows = (large, 4) if layers == "xl" else (small, 1)
    for memory in MEMORIES:
        sharding = dataclasses.replace(PRESETS[preset].over(fsdp=CHIPS), optimizer_memory=memory)
        data, optim = DataConfig(seq_len=model.max_length, batch_size=rows * CHIPS), OptimConfig(master_dtype="float32")
        program = build(Experiment(model=model, data=data, optim=optim, sharding=sharding, num_steps=10), devices)
        compiled = program.step.lower(program.abstract, step_batch(program)).compile()
        analysis = compiled.memory_analysis()
        result[memory] = {**compiled_memory(analysis), "host arguments": analysis.host_argument_size_in_bytes}
        result["parameters"] = sum(x.size for x in jax.tree.leaves(program.abstract.params))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
