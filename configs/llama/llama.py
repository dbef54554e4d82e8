"""Llama and Mistral at their published sizes.

Variants: "2-7b", "2-13b" (arXiv:2307.09288); "3-8b", "3.1-8b", "3-70b" (arXiv:2407.21783);
"mistral-7b" (arXiv:2310.06825).

  python -m experiments.train --config=configs/llama/llama.py:3-8b --workdir=runs/llama --dry_run

Set `sharding` for the available devices (docs/guides/configs.md), and `data` to a corpus tokenized by
experiments.tokenize. To start from published weights, see docs/guides/huggingface_checkpoints.md.
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.positions import Llama3Scaling, Rotary
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment

LLAMA3 = {"vocab_size": 128256, "num_kv_heads": 8, "mlp_dim": 14336, "positions": Rotary(base=500000.0)}
SIZES = {
    "2-7b": {"vocab_size": 32000},
    "2-13b": {"vocab_size": 32000, "num_layers": 40, "num_heads": 40, "embed_dim": 5120, "mlp_dim": 13824},
    "3-8b": LLAMA3,
    "3.1-8b": {**LLAMA3, "positions": Rotary(base=500000.0, scaling=Llama3Scaling())},
    "3-70b": {**LLAMA3, "num_layers": 80, "num_heads": 64, "embed_dim": 8192, "mlp_dim": 28672},
    "mistral-7b": {"vocab_size": 32000, "num_kv_heads": 8, "mlp_dim": 14336, "window": 4096},
}


def get_config(variant: str = "3-8b") -> Experiment:
    if variant not in SIZES:
        raise UserError(f"llama.py:{variant}: no such variant; expected {', '.join(SIZES)}")
    return Experiment(
        model=LlamaConfig(**SIZES[variant], scan_layers=True, remat="full", policy=Policy(compute_dtype="bfloat16")),
        data=DataConfig(source=PythonStdlib(), tokenizer=SentencePiece(vocab_size=2048), seq_len=4096, batch_size=256),
        optim=OptimConfig(learning_rate=3e-4, warmup_steps=2000, weight_decay=0.1, b2=0.95),
        num_steps=250_000,
        log_every=20,
        eval_every=1000,
        checkpoint_every=1000,
    )
