"""A GPT that two CPU cores train in about three minutes on the text of the Python standard library."""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.sources import Embedded
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.optim import OptimConfig
from jaxnlp.train.experiment import Experiment


def get_config(variant: str = "") -> Experiment:
    return Experiment(
        model=GPTConfig(max_len=256, num_layers=4, num_heads=4, embed_dim=192),
        data=DataConfig(
            source=Embedded(), tokenizer=SentencePiece(vocab_size=2048), seq_len=256, batch_size=8, prefetch_threads=0
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=50),
        steps=600,
        eval_every=200,
        checkpoint_every=200,
    )
