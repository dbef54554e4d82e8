"""A tiny ELMo for the text of the Python standard library; trains in about three minutes on two CPU cores.

python -m experiments.train --config=configs/elmo/tiny.py --workdir=runs/elmo
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.characters import Characters
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.models.elmo import ElmoConfig
from jaxnlp.objectives.bilm import BiLM
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        model=ElmoConfig(
            max_chars=16,
            filters=((1, 32), (2, 32), (3, 64), (4, 128)),
            num_highway=1,
            embed_dim=128,
            hidden_dim=256,
            dropout_rate=0.0,  # a run this short reads each text once
        ),
        data=DataConfig(
            source=PythonStdlib(),
            tokenizer=SentencePiece(vocab_size=2048),
            task=Characters(max_chars=16),
            seq_len=64,
            batch_size=16,
            prefetch_threads=0,
        ),
        objective=BiLM(),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=100),
        num_steps=1200,
        log_every=20,
        eval_every=300,
        eval_batches=40,
        checkpoint_every=300,
    )
