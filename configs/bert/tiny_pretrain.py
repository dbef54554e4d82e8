"""A tiny BERT for the text of the Python standard library; trains in minutes on two CPU cores.

The objectives are masked-language modelling and next-sentence prediction.
Variants: "" (BERT: pairs, single-token masking), "whole_words" (whole-word masking), "static" (static masking: ten
copies of each text per epoch, each with a fixed mask), "roberta" (full sentences, no next-sentence prediction).

  python -m experiments.train --config=configs/bert/tiny_pretrain.py --workdir=runs/bert
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.masking import Masked, WholeWords
from jaxnlp.data.text.sentences import FullSentences
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.bert import BertConfig
from jaxnlp.nn.positions import Rotary
from jaxnlp.objectives.masked_lm import MaskedLM
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment

TASKS = {
    "": Masked(),
    "whole_words": Masked(choose=WholeWords()),
    "static": Masked(static_copies=10),
    "roberta": Masked(text=FullSentences()),
}


def get_config(variant: str = "") -> Experiment:
    if variant not in TASKS:
        raise UserError(f"tiny_pretrain.py:{variant}: no such variant; expected {', '.join(filter(None, TASKS))}")
    task = TASKS[variant]
    return Experiment(
        model=BertConfig(
            num_layers=4,
            num_heads=4,
            embed_dim=192,
            max_length=128,
            dropout_rate=0.0,  # a run this short reads each text once
            positions=Rotary(),
            heads=("masked_lm", "next_sentence") if task.text.pairs else ("masked_lm",),
        ),
        data=DataConfig(
            source=PythonStdlib(),
            tokenizer=SentencePiece(vocab_size=2048, special_tokens=("[CLS]", "[SEP]", "[MASK]")),
            task=task,
            seq_len=128,
            batch_size=16,
            prefetch_threads=0,
        ),
        objective=MaskedLM(),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100),
        num_steps=1200,
        log_every=20,
        eval_every=300,
        eval_batches=40,
        checkpoint_every=300,
    )
