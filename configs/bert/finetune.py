"""Fine-tuning BERT on tasks made of the Python standard library, in minutes on two CPU cores.

The variant is TASK,RUN: what to learn, and the folder of the pretrained run (or of a model in Hugging Face's layout) to
begin from. TASK,RUN,fresh is the same model with the same tokenizer and fresh parameters: what pretraining is worth is
the difference. TASK alone needs no run: a tiny model and a tokenizer of the task's own texts.

  python -m experiments.train --config=configs/bert/tiny_pretrain.py --workdir=runs/bert
  python -m experiments.train --config=configs/bert/finetune.py:classify,runs/bert --workdir=runs/bert-topics
  python -m experiments.train --config=configs/bert/finetune.py:classify,runs/bert,fresh --workdir=runs/fresh-topics

Tasks: "classify" (the topic of a docstring; also ""), "pairs" (does a docstring belong to a signature?), "choice"
(which of four does?), "tags" (what is each token of a line of source?), "spans" (where is the default of a parameter?).
"""

import dataclasses

from configs.bert.tiny_pretrain import get_config as pretraining
from jaxnlp.data.embedded_tasks import (
    TAGS,
    TOPICS,
    EmbeddedChoice,
    EmbeddedDocstrings,
    EmbeddedEntailment,
    EmbeddedSpans,
    EmbeddedTags,
)
from jaxnlp.data.from_run import FromRun
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.tasks.choice import Choices
from jaxnlp.data.tasks.classification import Classification
from jaxnlp.data.tasks.inputs import Pair
from jaxnlp.data.tasks.spans import Spans
from jaxnlp.data.tasks.tags import Tags
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.heads import (
    FineTuned,
    MultipleChoice,
    SequenceClassification,
    SpanExtraction,
    TokenClassification,
)
from jaxnlp.objectives.choice import Choice
from jaxnlp.objectives.classify import Classify
from jaxnlp.objectives.span import Span
from jaxnlp.objectives.tag import Tag
from jaxnlp.optim import OptimConfig
from jaxnlp.train import pretrained
from jaxnlp.train.experiment import Experiment
from jaxnlp.train.pretrained import Pretrained

TASKS = {  # source, examples, head, objective, seq_len, batch_size
    "classify": (
        EmbeddedDocstrings(),
        Classification(classes=tuple(TOPICS), truncate=True),
        SequenceClassification(num_classes=len(TOPICS)),
        *(Classify(), 128, 16),
    ),
    "pairs": (
        EmbeddedEntailment(),
        Classification(inputs=Pair(), classes=("other", "own"), truncate=True),
        SequenceClassification(num_classes=2),
        *(Classify(), 128, 16),
    ),
    "choice": (EmbeddedChoice(), Choices(truncate=True), MultipleChoice(), Choice(), 96, 8),
    "tags": (EmbeddedTags(), Tags(classes=TAGS), TokenClassification(num_classes=len(TAGS)), Tag(), 80, 16),
    "spans": (EmbeddedSpans(), Spans(stride=64), SpanExtraction(), Span(), 128, 16),
}


def get_config(variant: str = "") -> Experiment:
    task, run, fresh = [*variant.split(","), "", ""][:3]
    if (task or "classify") not in TASKS:
        raise UserError(f"finetune.py:{variant}: no such task; expected {', '.join(TASKS)}, as classify,runs/bert")
    if fresh not in ("", "fresh"):
        raise UserError(f"finetune.py:{variant}: after TASK,RUN expected nothing, or fresh")
    source, examples, head, objective, seq_len, batch_size = TASKS[task or "classify"]
    # So small a BERT learns little from next sentences: its pooler, which they train, is better left out.
    changes = {"heads": (), "dropout_rate": 0.1}
    if run:
        trunk, tokenizer = pretrained.model(run, **changes), FromRun(path=run)
    else:
        trunk = dataclasses.replace(pretraining().model, **changes)
        tokenizer = SentencePiece(vocab_size=2048, specials=("[CLS]", "[SEP]"))
    return Experiment(
        model=FineTuned(trunk=trunk, head=head),
        init_from=Pretrained(path=run) if run and not fresh else None,
        data=DataConfig(
            source=source,
            tokenizer=tokenizer,
            examples=examples,
            seq_len=seq_len,
            batch_size=batch_size,
            prefetch_threads=0,
        ),
        objective=objective,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=80),
        steps=800,
        log_every=20,
        eval_every=200,
        eval_batches=None,
        checkpoint_every=200,
    )
