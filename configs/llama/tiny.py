"""A Llama that two CPU cores train in about three minutes: the tiny GPT's data and lengths, a Llama's model.

Variants: "" (Llama), "qwen3" (norms of queries and keys), "mistral" (each position sees the 64 up to itself).

  python -m experiments.train --config=configs/llama/tiny.py --workdir=runs/llama
"""

from configs.gpt import tiny
from jaxnlp.errors import UserError
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.nn.norms import RMSNorm
from jaxnlp.training.experiment import Experiment

KINDS = {"": {}, "qwen3": {"qk_norm": RMSNorm(), "tie_embeddings": True}, "mistral": {"window": 64}}


def get_config(variant: str = "") -> Experiment:
    if variant not in KINDS:
        raise UserError(f"tiny.py:{variant}: no such variant; expected {', '.join(filter(None, KINDS))}")
    experiment = tiny.get_config()
    experiment.model = LlamaConfig(
        num_layers=4, num_heads=4, num_kv_heads=2, embed_dim=192, mlp_dim=512, **KINDS[variant]
    )
    return experiment
