"""A GPT run that takes seconds, as a config file: --config=tests/experiments/small.py:CORPUS_FOLDER."""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sources import Files
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.optim import OptimConfig
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.experiment import Experiment


def get_config(corpus: str) -> Experiment:
    return Experiment(
        model=GPTConfig(max_length=64, num_layers=1, num_heads=2, embed_dim=16),
        data=DataConfig(
            source=Files(train=f"{corpus}/train.txt", validation=f"{corpus}/validation.txt", document="paragraph"),
            tokenizer=Bytes(),
            seq_len=16,
            batch_size=8,
            prefetch_threads=0,
        ),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=2),
        sharding=Sharding(mesh=MeshConfig(data=1)),
        num_steps=12,
        log_every=1,
        eval_every=4,
        checkpoint_every=4,
        keep_last=3,
        sample_prompt="def main",
        sample_tokens=8,
        peak_flops=1e12,
    )
