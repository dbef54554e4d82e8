"""A tiny Llama with the data and lengths of configs/gpt/tiny.py; trains in about three minutes on two CPU cores.

Variants: "" (Llama), "qwen3" (RMSNorm of queries and keys, tied embeddings), "mistral" (sliding window of 64
positions).

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
