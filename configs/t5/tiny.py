"""A tiny T5 with span corruption on the text of the Python standard library; trains in minutes on two CPU cores.

python -m experiments.train --config=configs/t5/tiny.py --workdir=runs/t5
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sentinels import sentinels
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.text.span_corruption import SpanCorruption
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.models.t5 import T5Config
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        model=T5Config(num_layers=3, num_heads=4, embed_dim=192, head_dim=48, mlp_dim=512, dropout_rate=0.0),
        data=DataConfig(
            source=PythonStdlib(),
            tokenizer=SentencePiece(vocab_size=2048, special_tokens=tuple(sentinels(8))),
            task=SpanCorruption(),
            seq_len=128,
            batch_size=8,
            prefetch_threads=0,
        ),
        objective=Seq2Seq(),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100),
        num_steps=2000,
        log_every=20,
        eval_every=500,
        eval_batches=40,
        checkpoint_every=500,
    )
