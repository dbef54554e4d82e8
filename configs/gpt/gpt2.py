"""GPT-2 at its published sizes (Radford et al. 2019, table 2).

Variants: "small" (124M parameters), "medium" (355M), "large" (774M), "xl" (1.5B).

  python -m experiments.train --config=configs/gpt/gpt2.py:xl --workdir=runs/xl

Append "-gpu" or "-tpu" to the size for that platform's attention kernel: --config=configs/gpt/gpt2.py:small-tpu.
Set `data` to a corpus tokenized by experiments.tokenize (see docs/guides/data.md).
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.kernels import DotProduct, Einsum, Flash
from jaxnlp.nn.policy import Policy
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment

SIZES = {  # layers, heads, embed_dim
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
    "xl": (48, 25, 1600),
}
KERNELS = {"": Einsum(), "gpu": DotProduct(implementation="cudnn"), "tpu": Flash()}


def get_config(variant: str = "small") -> Experiment:
    size, _, platform = variant.partition("-")
    if size not in SIZES or platform not in KERNELS:
        raise UserError(f"gpt2.py:{variant}: no such variant; expected {', '.join(SIZES)}, or one with -gpu or -tpu")
    layers, heads, dim = SIZES[size]
    return Experiment(
        model=GPTConfig(
            vocab_size=50304,  # 50,257 tokens, rounded up to a multiple of 128
            max_length=1024,
            num_layers=layers,
            num_heads=heads,
            embed_dim=dim,
            attention=KERNELS[platform],
            scan_layers=True,
            remat="dots",
            policy=Policy(compute_dtype="bfloat16"),
        ),
        data=DataConfig(source=PythonStdlib(), tokenizer=SentencePiece(vocab_size=32768), seq_len=1024, batch_size=512),
        optim=OptimConfig(learning_rate=6e-4, warmup_steps=2000, weight_decay=0.1, b2=0.95),
        accum_steps=8,
        num_steps=100_000,
        sample_prompt="def main",
        log_every=20,
        eval_every=1000,
        checkpoint_every=1000,
    )
