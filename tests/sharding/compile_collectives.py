"""Compiles training steps for TPU topologies; prints the collectives of each preset as JSON.

python -m tests.sharding.compile_collectives PRESET... Needs libtpu (TPU_LIBRARY_PATH) and no TPU.

Two layers 2048 wide, stacked, in bfloat16 with float32 master weights; ZeRO and data parallelism over the eight chips
of v5e:2x4, tensor parallelism over the four of v5e:2x2. Smaller matrices would hide reduce-scatters: XLA prints them
as all-reduces where a share's last dimension is 128, or where it turns them into rings of permutes (off here).
"""

import json
import re
import sys

import jax
import numpy as np
from jax.experimental import topologies

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.mlp import GatedMLP
from jaxnlp.nn.policy import Policy
from jaxnlp.optim import OptimConfig
from jaxnlp.planning.hlo import KINDS, collectives
from jaxnlp.sharding.presets import DDP, TP, TP_SP, ZERO1, ZERO2, ZERO3
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

LAYERS, BATCH, LENGTH, WIDTH, VOCAB = 2, 8, 256, 2048, 6144
PRESETS = {
    "DDP": DDP.over(data=8),
    "ZERO1": ZERO1.over(fsdp=8),
    "ZERO2": ZERO2.over(fsdp=8),
    "ZERO3": ZERO3.over(fsdp=8),
    "TP": TP.over(tensor=4),
    "TP_SP": TP_SP.over(tensor=4),
}
NO_RINGS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def step_of(name: str):
    """(the lowered step of a preset, the number of parameters)."""
    sharding = PRESETS[name]
    shape = "v5e:2x2" if sharding.mesh.tensor == 4 else "v5e:2x4"
    model = GPTConfig(
        vocab_size=VOCAB,
        max_length=LENGTH,
        num_layers=LAYERS,
        num_heads=16,
        embed_dim=WIDTH,
        mlp_dim=2 * WIDTH,
        mlp=GatedMLP(),
        scan_layers=True,
        policy=Policy(compute_dtype="bfloat16", param_dtype="bfloat16"),
    )
    e = Experiment(
        model=model,
        data=DataConfig(seq_len=LENGTH, batch_size=BATCH),
        optim=OptimConfig(master_dtype="float32"),
        sharding=sharding,
        num_steps=10,
    )
    program = build(e, topologies.get_topology_desc(shape, platform="tpu").devices)
    dtypes = {**dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), np.int32), "weights": np.float32}
    batch = {
        name: jax.ShapeDtypeStruct((BATCH, LENGTH), dtype, sharding=program.batch_sharding)
        for name, dtype in dtypes.items()
    }
    return program.step.lower(program.abstract, batch), sum(x.size for x in jax.tree.leaves(program.abstract.params))


def compiled_report(name: str) -> dict:
    """parameters: their count. collectives: as `planning/hlo.py` reads them. arrays: their operands' shapes."""
    lowered, parameters = step_of(name)
    text = lowered.compile(compiler_options=NO_RINGS).as_text()
    results = re.findall(rf"= (.*?) (?:{'|'.join(KINDS)})(?:-start)?\(", text)
    arrays = [[int(n) for n in shape.split(",")] for kind in results for shape in re.findall(r"\[([\d,]+)\]", kind)]
    moved = [{"kind": c.kind, "bytes": c.bytes, "count": c.count, "source": c.source} for c in collectives(text)]
    return {"parameters": parameters, "collectives": moved, "arrays": arrays}


if __name__ == "__main__":
    print(json.dumps({name: compiled_report(name) for name in sys.argv[1:]}))
