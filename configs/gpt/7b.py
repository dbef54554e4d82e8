"""A GPT of 6.6 billion parameters, for 256 TPU v5e chips or more: ZeRO 3 over all of them.

Rotary positions, RMSNorm, SwiGLU and no biases, as in Llama; bfloat16 parameters with float32 master copies. It fits
v5e:16x16; `python -m experiments.plan --config=configs/gpt/7b.py --topology=v5e:16x16` says how well beforehand.
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
            max_length=2048,
            num_layers=32,
            num_heads=32,
            embed_dim=4096,
            mlp_dim=11008,
            positions=Rotary(),
            norm=RMSNorm(),
            mlp=GatedMLP(),
            attention=Flash(),
            use_bias=False,
            scan_layers=True,
            remat="full",
            policy=Policy(param_dtype="bfloat16", compute_dtype="bfloat16"),
        ),
        data=DataConfig(source=PythonStdlib(), tokenizer=SentencePiece(vocab_size=32768), seq_len=2048, batch_size=512),
        optim=OptimConfig(learning_rate=3e-4, warmup_steps=2000, weight_decay=0.1, b2=0.95, master_dtype="float32"),
        sharding=ZERO3.on(fsdp=-1),
        steps=100_000,
        log_every=20,
        eval_every=1000,
        checkpoint_every=1000,
    )
