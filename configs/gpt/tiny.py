"""A tiny GPT for the text of the Python standard library; trains in three to four minutes on two CPU cores.

GPT-2's block with rotary positions, which learn much faster than learned position embeddings in a run this short.
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.positions import Rotary
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        model=GPTConfig(num_layers=4, num_heads=4, embed_dim=192, positions=Rotary()),
        data=DataConfig(
            source=PythonStdlib(),
            tokenizer=SentencePiece(vocab_size=2048),
            seq_len=128,
            batch_size=4,
            prefetch_threads=0,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100),
        num_steps=3000,
        log_every=20,
        eval_every=500,
        eval_batches=40,
        checkpoint_every=500,
        sample_prompt="def main",
        sample_tokens=120,
    )
