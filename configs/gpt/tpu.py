"""Large GPTs for TPU slices, with ZeRO 3 over all chips. The variant is the size: "1b", "7b" or "70b".

| variant | parameters | chips |
|---------|------------|-------|
| 1b | 1.30 billion | v5e:4x4 (16) or more |
| 7b | 6.61 billion | v5e:16x16 (256) or more |
| 70b | 68.7 billion, grouped queries | v5p:8x8x8 (512) or more |

Rotary positions, RMSNorm, SwiGLU and no biases, as in Llama; bfloat16 parameters with float32 master copies.
The planner compiles the training step for a slice without one, and reports memory, communication and time:

  python -m experiments.plan --config=configs/gpt/tpu.py:1b --topology=v5e:4x4
  make plan CONFIG=configs/gpt/tpu.py:7b TOPOLOGY=v5e:16x16
"""

from typing import Any

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.kernels import Flash
from jaxnlp.nn.mlp import GatedMLP
from jaxnlp.nn.norms import RMSNorm
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.positions import Rotary
from jaxnlp.optim import OptimConfig
from jaxnlp.sharding.presets import ZERO3
from jaxnlp.training.experiment import Experiment

MODELS: dict[str, dict[str, Any]] = {
    "1b": {"num_layers": 24, "num_heads": 16, "embed_dim": 2048, "mlp_dim": 5632, "max_length": 2048},
    "7b": {"num_layers": 32, "num_heads": 32, "embed_dim": 4096, "mlp_dim": 11008, "max_length": 2048},
    "70b": {
        "num_layers": 80,
        "num_heads": 64,
        "num_kv_heads": 8,
        "embed_dim": 8192,
        "mlp_dim": 28672,
        "max_length": 4096,
    },
}
BATCHES = {"1b": (256, 2), "7b": (512, 1), "70b": (512, 1)}  # batch_size, accum_steps
LEARNING_RATES = {"1b": 4e-4, "7b": 3e-4, "70b": 1.5e-4}


def get_config(variant: str = "1b") -> Experiment:
    if variant not in MODELS:
        raise UserError(f"configs/gpt/tpu.py:{variant}: no such variant; expected {', '.join(MODELS)}")
    sizes, (batch_size, accum_steps) = MODELS[variant], BATCHES[variant]
    return Experiment(
        model=GPTConfig(
            vocab_size=32768,
            **sizes,
            positions=Rotary(),
            norm=RMSNorm(),
            mlp=GatedMLP(),
            attention=Flash(),
            use_bias=False,
            scan_layers=True,
            remat="full",
            policy=Policy(param_dtype="bfloat16", compute_dtype="bfloat16"),
        ),
        data=DataConfig(
            source=PythonStdlib(),
            tokenizer=SentencePiece(vocab_size=32768),
            seq_len=sizes["max_length"],
            batch_size=batch_size,
        ),
        optim=OptimConfig(
            learning_rate=LEARNING_RATES[variant], warmup_steps=2000, weight_decay=0.1, b2=0.95, master_dtype="float32"
        ),
        sharding=ZERO3.over(fsdp=-1),
        accum_steps=accum_steps,
        num_steps=100_000,
        log_every=20,
        eval_every=1000,
        checkpoint_every=1000,
    )
