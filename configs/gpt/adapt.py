"""Continued pretraining of a GPT on texts of a domain or a task, with the same objective.

"Domain-adaptive" and "task-adaptive" pretraining of Gururangan et al. 2020, arXiv:2004.10964. The variant is RUN,
RUN,FILES or RUN,FILES,PARTS. It may be empty for a dry run on a randomly initialised model.

RUN is the folder of a run, or one in Hugging Face's layout.
FILES is a file, folder or glob of texts; empty: the docstrings of the Python standard library.
PARTS selects the trained parameters: "all" (the default), "upper" (all but the embeddings and the lower half of the
layers), or "lora" (LoRA on every linear layer of the blocks).

  python -m experiments.train --config=configs/gpt/tiny.py --workdir=runs/tiny
  python -m experiments.train --config=configs/gpt/adapt.py:runs/tiny --workdir=runs/adapted
  python -m experiments.train --config=configs/gpt/adapt.py:runs/tiny,,lora --workdir=runs/adapted-lora
  python -m experiments.train --config=configs/gpt/finetune.py:entailment,runs/adapted --workdir=runs/entailment
"""

import dataclasses
from typing import Any

from configs.gpt.tiny import get_config as pretraining
from jaxnlp.data.pretrained_tokenizer import PretrainedTokenizer
from jaxnlp.data.text.sources import Files, PythonStdlib
from jaxnlp.errors import UserError
from jaxnlp.nn.positions import Learned
from jaxnlp.optim import OptimConfig
from jaxnlp.peft.full import Full
from jaxnlp.peft.lora import LoRA
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init import pretrained
from jaxnlp.training.init.pretrained import Pretrained

PARTS = ("all", "upper", "lora")
RATES = {"all": 5e-4, "upper": 5e-4, "lora": 3e-3}


def get_config(variant: str = "") -> Experiment:
    run, files, parts, *extra = [*variant.split(","), "", ""][: max(3, variant.count(",") + 1)]
    parts = parts or "all"
    if parts not in PARTS or extra or (variant and not run):
        raise UserError(
            f"configs/gpt/adapt.py:{variant}: expected RUN, RUN,FILES or RUN,FILES,PARTS, as runs/tiny,texts,upper; "
            f"parts: {', '.join(PARTS)}"
        )
    e = pretraining()
    data = dataclasses.replace(e.data, source=Files(train=files) if files else PythonStdlib(part="docstrings"))
    if run:
        e.model, e.init_from = pretrained.model(run, scan_layers=False), Pretrained(path=run)
        data = dataclasses.replace(data, tokenizer=PretrainedTokenizer(path=run))
    return dataclasses.replace(
        e,
        data=data,
        peft=tuning(parts, e.model),
        optim=OptimConfig(learning_rate=RATES[parts], warmup_steps=50),
        num_steps=500,
        sample_prompt="def main",
        eval_every=100,
        checkpoint_every=100,
    )


def tuning(parts: str, model: Any) -> object:
    """The PEFT method that trains these parts of a model; None for full fine-tuning."""
    if parts == "upper":
        tables = ("embed/*", "positions/*") if isinstance(model.positions, Learned) else ("embed/*",)
        return Full(frozen=(*tables, *(f"block_{i}/*" for i in range(model.num_layers // 2))))
    return LoRA(rank=8, targets=("query", "key", "value", "out", "up", "down")) if parts == "lora" else None
