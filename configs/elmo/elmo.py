"""ELMo at its published sizes (Peters et al. 2018; the smaller sizes are from AllenNLP).

Variants, with parameter counts without the softmax: "original" (93.6M), "medium" (28.0M), "small" (13.6M).

  python -m experiments.train --config=configs/elmo/elmo.py:original --workdir=runs/elmo --dry_run

The published setting is windows of 20 words in batches of 3 x 128, for ten epochs of the 1B Word Benchmark. Set `data`
to a corpus tokenized by experiments.tokenize (docs/guides/data.md). The softmax here is over the full vocabulary, while
the authors used a sampled softmax (8,192 of 793,471 words per step), so use a vocabulary of tens of thousands.
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.characters import Characters
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.elmo import ElmoConfig
from jaxnlp.objectives.bilm import BiLM
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment

SIZES = {
    "original": {},
    "medium": {"num_highway": 1, "embed_dim": 256, "hidden_dim": 2048},
    "small": {"num_highway": 1, "embed_dim": 128, "hidden_dim": 1024},
}


def get_config(variant: str = "original") -> Experiment:
    if variant not in SIZES:
        raise UserError(f"elmo.py:{variant}: no such variant; expected {', '.join(SIZES)}")
    return Experiment(
        model=ElmoConfig(**SIZES[variant]),
        data=DataConfig(
            source=PythonStdlib(),
            tokenizer=SentencePiece(vocab_size=32768),
            task=Characters(),
            seq_len=20,
            batch_size=384,
        ),
        objective=BiLM(),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=1000, weight_decay=0.0, clip_norm=10.0),
        num_steps=1_000_000,
        log_every=100,
        eval_every=5000,
        checkpoint_every=5000,
    )
