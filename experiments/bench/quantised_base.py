"""Memory of a LoRA step on one TPU chip by dtype of the base, from compiled programs. Nothing is executed.

  python -m experiments.bench.quantised_base

The model is GPT-2 1.5B with LoRA of rank 8 on queries and values, 8 rows of 1,024 tokens, and full remat by default.
Needs libtpu (`make tpu`) but no TPU. A compilation takes one to two minutes on two cores.
"""

import dataclasses
from typing import Any

from absl import flags

from jaxnlp import cli, distributed, runtime

TOPOLOGY = flags.DEFINE_string("topology", "v5p:1x1x1", "Chip, in the format of jaxnlp.planning.topology.")
BATCH = flags.DEFINE_integer("batch_size", 8, "Batch size, in rows of 1,024 tokens.")
REMAT = flags.DEFINE_string("remat", "full", "Rematerialisation policy of the model.")
DTYPES = flags.DEFINE_list(
    "dtypes", ["float32", "bfloat16", "int8", "nf4"], "Dtypes of the base parameters to compare."
)


def main() -> None:
    print("| base | base, estimated | arguments | temporaries | peak |\n|---|---|---|---|---|")
    for dtype in DTYPES.value:
        base_bytes, memory = measured(dtype)
        sizes = [base_bytes, *(memory[part] for part in ("arguments", "temporaries", "peak"))]
        print(f"| {dtype} | {' | '.join(f'{size / 1e9:.2f} GB' for size in sizes)} |", flush=True)


def measured(dtype: str) -> tuple[int, dict[str, int]]:
    """(bytes of parameters by our estimate, the compiler's memory analysis of a step)."""
    from configs.gpt.gpt2 import get_config
    from jaxnlp.peft.lora import LoRA
    from jaxnlp.planning.dry_run import device_bytes
    from jaxnlp.planning.planner import compiled_memory, step_batch
    from jaxnlp.planning.topology import topology_devices
    from jaxnlp.training.step.program import build

    chips = topology_devices(TOPOLOGY.value)
    import jax

    e: Any = get_config("xl-tpu")
    model = dataclasses.replace(e.model, remat=REMAT.value, scan_layers=True)
    data = dataclasses.replace(e.data, batch_size=BATCH.value, attend_across_documents=True)
    e = dataclasses.replace(e, model=model, data=data, accum_steps=1, peft=LoRA(rank=8, base_dtype=dtype))
    program = build(e, chips)
    with program.context():
        compiled = program.step.lower(program.abstract, step_batch(program)).compile()
    return sum(map(device_bytes, jax.tree.leaves(program.abstract.all_params))), compiled_memory(
        compiled.memory_analysis()
    )


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
