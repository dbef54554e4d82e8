"""A GPT of 68.7 billion parameters, for 512 TPU v5p chips or more: ZeRO 3 over all of them.

Grouped queries, rotary positions, RMSNorm, SwiGLU and no biases, as in Llama; bfloat16 parameters with float32 master
copies. It fits v5p:8x8x8; `python -m experiments.plan --config=configs/gpt/70b.py --topology=v5p:8x8x8` says how well.
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.kernels import Flash
from jaxnlp.nn.mlp import GatedMLP
from jaxnlp.nn.norms import RMSNorm
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.positions import Rotary
from jaxnlp.optim import OptimConfig
from jaxnlp.sharding.presets import ZERO3
from jaxnlp.training.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        model=GPTConfig(
            vocab_size=32768,
            max_length=4096,
            num_layers=80,
            num_heads=64,
            num_kv_heads=8,
            embed_dim=8192,
            mlp_dim=28672,
            positions=Rotary(),
            norm=RMSNorm(),
            mlp=GatedMLP(),
            attention=Flash(),
            use_bias=False,
            scan_layers=True,
            remat="full",
            policy=Policy(param_dtype="bfloat16", compute_dtype="bfloat16"),
        ),
        data=DataConfig(source=PythonStdlib(), tokenizer=SentencePiece(vocab_size=32768), seq_len=4096, batch_size=512),
        optim=OptimConfig(learning_rate=1.5e-4, warmup_steps=2000, weight_decay=0.1, b2=0.95, master_dtype="float32"),
        sharding=ZERO3.on(fsdp=-1),
        steps=100_000,
        log_every=20,
        eval_every=1000,
        checkpoint_every=1000,
    )
