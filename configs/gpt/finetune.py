"""Fine-tunes GPT on tasks built from the Python standard library, in minutes on two CPU cores (Radford et al. 2018).

The texts of an input are separated by start, delimiter and extract tokens (section 3.3 and figure 1), which are added
to the vocabulary. The head reads the hidden state at the extract token. The language-modelling loss is an auxiliary
objective with weight 0.5 (equation 5). The variant is TASK, TASK,RUN or TASK,RUN,fresh, as in
`configs/bert/finetune.py`:

  python -m experiments.train --config=configs/gpt/tiny.py --workdir=runs/tiny
  python -m experiments.train --config=configs/gpt/finetune.py:entailment,runs/tiny --workdir=runs/tiny-entailment

Tasks:
  sequence_classification  the topic of a docstring (the default)
  entailment               does a docstring belong to a signature?
  similarity               are two docstrings from the same file? (read in both orders)
  multiple_choice          which of four docstrings belongs to a signature?
"""

import dataclasses

from configs.gpt.tiny import get_config as pretraining
from jaxnlp.data.corpora.stdlib_tasks import (
    TOPICS,
    StdlibChoice,
    StdlibDocstrings,
    StdlibEntailment,
    StdlibSimilarity,
)
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.pretrained_tokenizer import PretrainedTokenizer
from jaxnlp.data.tasks.inputs import Pair, Unordered
from jaxnlp.data.tasks.layout import DecoderLayout
from jaxnlp.data.tasks.multiple_choice import MultipleChoiceTask
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.heads import ModelWithHead, MultipleChoiceHead, SequenceClassificationHead
from jaxnlp.objectives.multiple_choice import MultipleChoice
from jaxnlp.objectives.sequence_classification import SequenceClassification
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init import pretrained
from jaxnlp.training.init.pretrained import Pretrained

LAYOUT = DecoderLayout()
SPECIALS = (LAYOUT.start, LAYOUT.delimiter, LAYOUT.extract)
TASKS = {  # source, task, head, objective, seq_len, batch_size
    "sequence_classification": (
        StdlibDocstrings(),
        SequenceClassificationTask(classes=tuple(TOPICS), layout=LAYOUT, truncate=True),
        SequenceClassificationHead(num_classes=len(TOPICS)),
        *(SequenceClassification(lm_weight=0.5), 128, 16),
    ),
    "entailment": (
        StdlibEntailment(),
        SequenceClassificationTask(inputs=Pair(), classes=("other", "own"), layout=LAYOUT, truncate=True),
        SequenceClassificationHead(num_classes=2),
        *(SequenceClassification(lm_weight=0.5), 128, 16),
    ),
    "similarity": (
        StdlibSimilarity(),
        SequenceClassificationTask(inputs=Unordered(), classes=("other", "same"), layout=LAYOUT, truncate=True),
        SequenceClassificationHead(num_classes=2),
        *(SequenceClassification(lm_weight=0.5), 160, 8),
    ),
    "multiple_choice": (
        StdlibChoice(),
        MultipleChoiceTask(layout=LAYOUT, truncate=True),
        MultipleChoiceHead(),
        MultipleChoice(lm_weight=0.5),
        96,
        8,
    ),
}


def get_config(variant: str = "") -> Experiment:
    name, run, fresh = [*variant.split(","), "", ""][:3]
    if (name or "sequence_classification") not in TASKS:
        raise UserError(
            f"finetune.py:{variant}: no such task; expected {', '.join(TASKS)}, for example entailment,runs/tiny"
        )
    if fresh not in ("", "fresh"):
        raise UserError(f"finetune.py:{variant}: expected TASK,RUN or TASK,RUN,fresh")
    source, task, head, objective, seq_len, batch_size = TASKS[name or "sequence_classification"]
    if run:
        body = pretrained.model(run, dropout_rate=0.1)
        tokenizer = PretrainedTokenizer(path=run, special_tokens=SPECIALS)
    else:
        body = dataclasses.replace(pretraining().model, dropout_rate=0.1)
        tokenizer = SentencePiece(vocab_size=2048, special_tokens=SPECIALS)
    return Experiment(
        model=ModelWithHead(body=body, head=head),
        init_from=Pretrained(path=run) if run and not fresh else None,
        data=DataConfig(
            source=source,
            tokenizer=tokenizer,
            task=task,
            seq_len=seq_len,
            batch_size=batch_size,
            prefetch_threads=0,
        ),
        objective=objective,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=80),
        num_steps=800,
        log_every=20,
        eval_every=200,
        eval_batches=None,
        checkpoint_every=200,
    )
