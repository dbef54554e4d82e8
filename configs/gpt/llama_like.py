"""The tiny GPT with Llama's components: rotary positions, RMSNorm, SwiGLU, grouped-query attention, no biases."""

from configs.gpt import tiny
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.mlp import GatedMLP
from jaxnlp.nn.norms import RMSNorm
from jaxnlp.nn.positions import Rotary
from jaxnlp.training.experiment import Experiment


def get_config() -> Experiment:
    experiment = tiny.get_config()
    experiment.model = GPTConfig(
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        embed_dim=192,
        positions=Rotary(),
        norm=RMSNorm(),
        mlp=GatedMLP(),
        use_bias=False,
    )
    return experiment
