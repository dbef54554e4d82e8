"""Fine-tunes BERT on tasks built from the Python standard library, in minutes on two CPU cores.

The variant is TASK, TASK,RUN or TASK,RUN,fresh. RUN is the pretrained model: the folder of a run, or one in Hugging
Face's layout. With `fresh` the model keeps RUN's sizes and tokenizer but starts from random parameters; the difference
between the two runs is the effect of pretraining. TASK alone needs no RUN: it builds a tiny model and trains a
tokenizer on the task's texts.

  python -m experiments.train --config=configs/bert/tiny_pretrain.py --workdir=runs/bert
  python -m experiments.train --config=configs/bert/finetune.py:entailment,runs/bert --workdir=runs/entailment
  python -m experiments.train --config=configs/bert/finetune.py:entailment,runs/bert,fresh --workdir=runs/fresh

Tasks:
  sequence_classification  the topic of a docstring (the default)
  entailment               does a docstring belong to a signature?
  multiple_choice          which of four docstrings belongs to a signature?
  token_classification     the kind of each token of a line of source
  span_extraction          where a parameter's default value is in a signature

The runs of the last two tasks have evaluators, whose metrics choose the best checkpoint.
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
from jaxnlp.evals.evaluator import Evaluator
from jaxnlp.evals.predictions import PredictionEvaluator
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

TASKS = {  # source, task, head, objective, seq_len, batch_size
    "sequence_classification": (
        StdlibDocstrings(),
        SequenceClassificationTask(classes=tuple(TOPICS), truncate=True),
        SequenceClassificationHead(num_classes=len(TOPICS)),
        *(SequenceClassification(), 128, 16),
    ),
    "entailment": (
        StdlibEntailment(),
        SequenceClassificationTask(inputs=Pair(), classes=("other", "own"), truncate=True),
        SequenceClassificationHead(num_classes=2),
        *(SequenceClassification(), 128, 16),
    ),
    "multiple_choice": (
        StdlibChoice(),
        MultipleChoiceTask(truncate=True),
        MultipleChoiceHead(),
        MultipleChoice(),
        96,
        8,
    ),
    "token_classification": (
        StdlibTags(),
        TokenClassificationTask(classes=TAGS, truncate=True),
        TokenClassificationHead(num_classes=len(TAGS)),
        TokenClassification(),
        80,
        16,
    ),
    "span_extraction": (StdlibSpans(), SpanExtractionTask(stride=64), SpanExtractionHead(), SpanExtraction(), 128, 16),
}

EVALUATORS: dict[str, tuple[Evaluator, str]] = {  # the evaluator, and the metric that chooses the best checkpoint
    "token_classification": (PredictionEvaluator(name="tags"), "tags/accuracy:max"),
    "span_extraction": (PredictionEvaluator(name="squad"), "squad/f1:max"),
}


def get_config(variant: str = "") -> Experiment:
    name, run, fresh = [*variant.split(","), "", ""][:3]
    name = name or "sequence_classification"
    if name not in TASKS:
        raise UserError(
            f"finetune.py:{variant}: no such task; expected {', '.join(TASKS)}, such as entailment,runs/bert"
        )
    if fresh not in ("", "fresh"):
        raise UserError(f"finetune.py:{variant}: expected TASK,RUN or TASK,RUN,fresh")
    source, task, head, objective, seq_len, batch_size = TASKS[name]
    evaluator, best = EVALUATORS.get(name, (None, "validation/loss:min"))
    # Next-sentence prediction helps a model of this size little, so its pooler is not used.
    changes = {"heads": (), "dropout_rate": 0.1}
    if run:
        body, tokenizer = pretrained.model(run, **changes), PretrainedTokenizer(path=run)
    else:
        body = dataclasses.replace(pretraining().model, **changes)
        tokenizer = SentencePiece(vocab_size=2048, special_tokens=("[CLS]", "[SEP]"))
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
        evaluators=() if evaluator is None else (evaluator,),
        best=best,
    )
