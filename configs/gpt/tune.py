"""Tuning a few parameters of a trained GPT, as a language model or on a task of `configs/gpt/finetune.py`.

The variant is METHOD,RUN or METHOD,RUN,TASK, or METHOD alone for a dry run, on a base that is drawn; methods: lora,
qlora, dora, adapter, ia3, bitfit, prefix, prompt (docs/peft.md).

  python -m experiments.train --config=configs/gpt/tiny.py --workdir=runs/tiny
  python -m experiments.train --config=configs/gpt/tune.py:lora,runs/tiny --workdir=runs/tiny-lora
  python -m experiments.train --config=configs/gpt/tune.py:adapter,runs/tiny,classify --workdir=runs/topics-adapter
"""

import dataclasses

from configs.gpt import finetune
from configs.gpt.tiny import get_config as pretraining
from jaxnlp.data.from_run import FromRun
from jaxnlp.errors import UserError
from jaxnlp.optim import OptimConfig
from jaxnlp.peft.adapter import Adapter
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.partial import BitFit
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt
from jaxnlp.train import pretrained
from jaxnlp.train.experiment import Experiment
from jaxnlp.train.pretrained import Pretrained

METHODS = {
    "lora": LoRA(rank=8, targets=("query", "value", "up", "down")),
    "qlora": LoRA(rank=8, targets=("query", "value", "up", "down"), base_dtype="nf4"),
    "dora": LoRA(rank=8, targets=("query", "value", "up", "down"), dora=True),
    "adapter": Adapter(bottleneck=16),
    "ia3": IA3(),
    "bitfit": BitFit(),
    "prefix": Prefix(length=8),
    "prompt": Prompt(length=8),
}


def get_config(variant: str = "lora") -> Experiment:
    method, run, task, *more = [*variant.split(","), "", ""][: max(3, variant.count(",") + 1)]
    if method not in METHODS or more or (task and not run):
        raise UserError(
            f"configs/gpt/tune.py:{variant}: expected METHOD,RUN or METHOD,RUN,TASK, as lora,runs/tiny; methods: "
            f"{', '.join(METHODS)}; tasks: {', '.join(finetune.TASKS)}"
        )
    optim = OptimConfig(learning_rate=5e-3, warmup_steps=20, weight_decay=0.0)
    if task:
        return dataclasses.replace(finetune.get_config(f"{task},{run}"), tuning=METHODS[method], optim=optim)
    e = dataclasses.replace(pretraining(), optim=optim, tuning=METHODS[method])
    if not run:
        data = dataclasses.replace(e.data, attend_across_documents=True)
        return dataclasses.replace(e, data=data)
    data = dataclasses.replace(e.data, tokenizer=FromRun(path=run), attend_across_documents=True)
    e = dataclasses.replace(e, model=pretrained.model(run), data=data)
    return dataclasses.replace(e, init_from=Pretrained(path=run), steps=500, eval_every=100, checkpoint_every=100)
