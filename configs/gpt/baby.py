"""nanoGPT's baby GPT on bytes: the size of its documented CPU setting, and the "baby" shape of the benchmarks."""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.norms import LayerNorm
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        model=GPTConfig(
            max_length=64,
            num_layers=4,
            num_heads=4,
            embed_dim=128,
            use_bias=False,
            norm=LayerNorm(use_bias=False),
        ),
        data=DataConfig(source=PythonStdlib(), tokenizer=Bytes(), seq_len=64, batch_size=12, prefetch_threads=0),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=100, weight_decay=0.1, b2=0.99),
        num_steps=2000,
        sample_prompt="def main",
        log_every=20,
        eval_every=500,
        checkpoint_every=500,
    )
