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
from jaxnlp.data.corpora.stdlib_tasks import (
    TAGS,
    TOPICS,
    StdlibChoice,
    StdlibDocstrings,
    StdlibEntailment,
    StdlibSpans,
    StdlibTags,
)
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.pretrained_tokenizer import PretrainedTokenizer
from jaxnlp.data.tasks.inputs import Pair
from jaxnlp.data.tasks.multiple_choice import MultipleChoiceTask
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tasks.span_extraction import SpanExtractionTask
from jaxnlp.data.tasks.token_classification import TokenClassificationTask
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.heads import (
    ModelWithHead,
    MultipleChoiceHead,
    SequenceClassificationHead,
    SpanExtractionHead,
    TokenClassificationHead,
)
from jaxnlp.objectives.multiple_choice import MultipleChoice
from jaxnlp.objectives.sequence_classification import SequenceClassification
from jaxnlp.objectives.span_extraction import SpanExtraction
from jaxnlp.objectives.token_classification import TokenClassification
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init import pretrained
from jaxnlp.training.init.pretrained import Pretrained

TASKS = {  # source, examples, head, objective, seq_len, batch_size
    "classify": (
        StdlibDocstrings(),
        SequenceClassificationTask(classes=tuple(TOPICS), truncate=True),
        SequenceClassificationHead(num_classes=len(TOPICS)),
        *(SequenceClassification(), 128, 16),
    ),
    "pairs": (
        StdlibEntailment(),
        SequenceClassificationTask(inputs=Pair(), classes=("other", "own"), truncate=True),
        SequenceClassificationHead(num_classes=2),
        *(SequenceClassification(), 128, 16),
    ),
    "choice": (StdlibChoice(), MultipleChoiceTask(truncate=True), MultipleChoiceHead(), MultipleChoice(), 96, 8),
    "tags": (
        StdlibTags(),
        TokenClassificationTask(classes=TAGS),
        TokenClassificationHead(num_classes=len(TAGS)),
        TokenClassification(),
        80,
        16,
    ),
    "spans": (StdlibSpans(), SpanExtractionTask(stride=64), SpanExtractionHead(), SpanExtraction(), 128, 16),
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
        trunk, tokenizer = pretrained.model(run, **changes), PretrainedTokenizer(path=run)
    else:
        trunk = dataclasses.replace(pretraining().model, **changes)
        tokenizer = SentencePiece(vocab_size=2048, specials=("[CLS]", "[SEP]"))
    return Experiment(
        model=ModelWithHead(body=trunk, head=head),
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
