"""Parameter-efficient fine-tuning of a GPT, as a language model or on a task of `configs/gpt/finetune.py`.

The variant is METHOD,RUN or METHOD,RUN,TASK, or METHOD alone for a dry run on a randomly initialised base.

Methods: lora, qlora, dora, rslora, lora+, adapter (Houlsby), pfeiffer, ia3, bitfit, full, prefix, prefix-mlp, prompt,
ptuning. P-tuning places its vectors around a task's texts (in a template) and in front of a language model's texts
(docs/guides/peft.md).

  python -m experiments.train --config=configs/gpt/tiny.py --workdir=runs/tiny
  python -m experiments.train --config=configs/gpt/tune.py:lora,runs/tiny --workdir=runs/tiny-lora
  python -m experiments.train --config=configs/gpt/tune.py:adapter,runs/tiny,entailment --workdir=runs/adapter
  python -m experiments.train --config=configs/gpt/tune.py:ptuning,runs/tiny,entailment --workdir=runs/ptuning
"""

import dataclasses

from configs.gpt import finetune
from configs.gpt.tiny import get_config as pretraining
from jaxnlp.data.pretrained_tokenizer import PretrainedTokenizer
from jaxnlp.data.tasks.layout import PLACE, Template
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.optim import OptimConfig
from jaxnlp.peft.adapter import PFEIFFER, Adapter
from jaxnlp.peft.bitfit import BitFit
from jaxnlp.peft.full import Full
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt, PTuning
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init import pretrained
from jaxnlp.training.init.pretrained import Pretrained

MAPS = ("query", "value", "up", "down")
METHODS = {
    "lora": LoRA(rank=8, targets=MAPS),
    "qlora": LoRA(rank=8, targets=MAPS, base_dtype="nf4"),
    "dora": LoRA(rank=8, targets=MAPS, use_dora=True),
    "rslora": LoRA(rank=8, targets=MAPS, use_rslora=True),
    "lora+": LoRA(rank=8, targets=MAPS, lora_plus_ratio=16.0),
    "adapter": Adapter(bottleneck=16),
    "pfeiffer": Adapter(targets=PFEIFFER, bottleneck=16),
    "ia3": IA3(),
    "bitfit": BitFit(),
    "full": Full(),
    "prefix": Prefix(length=8),
    "prefix-mlp": Prefix(length=8, hidden_dim=64),
    "prompt": Prompt(length=8),
    "ptuning": PTuning(length=8, encoder="lstm"),
}


def get_config(variant: str = "lora") -> Experiment:
    method, run, task, *extra = [*variant.split(","), "", ""][: max(3, variant.count(",") + 1)]
    if method not in METHODS or extra or (task and not run):
        raise UserError(
            f"configs/gpt/tune.py:{variant}: expected METHOD,RUN or METHOD,RUN,TASK, such as lora,runs/tiny; methods: "
            f"{', '.join(METHODS)}; tasks: {', '.join(finetune.TASKS)}"
        )
    optim = OptimConfig(learning_rate=5e-3, warmup_steps=20, weight_decay=0.0)
    if task:
        e = dataclasses.replace(finetune.get_config(f"{task},{run}"), peft=METHODS[method], optim=optim)
        return within_template(e, METHODS[method]) if isinstance(METHODS[method], PTuning) else e
    e = dataclasses.replace(pretraining(), optim=optim, peft=METHODS[method])
    if not run:
        data = dataclasses.replace(e.data, attend_across_documents=True)
        return dataclasses.replace(e, data=data)
    data = dataclasses.replace(e.data, tokenizer=PretrainedTokenizer(path=run), attend_across_documents=True)
    e = dataclasses.replace(e, model=pretrained.model(run), data=data)
    return dataclasses.replace(e, init_from=Pretrained(path=run), num_steps=500, eval_every=100, checkpoint_every=100)


def within_template(e: Experiment, method: PTuning) -> Experiment:
    """The task in a template with half of the prompt's positions on either side of its texts.

    The language-modelling loss is disabled, because the prompt's positions are not words to predict.
    """
    half = method.length // 2 * PLACE
    within, tokenizer = e.data.task.layout, e.data.tokenizer
    assert within is not None and isinstance(tokenizer, PretrainedTokenizer | SentencePiece)
    layout = Template(text=f"{half}{{text}}{half}", layout=within)
    tokenizer = dataclasses.replace(tokenizer, special_tokens=(*tokenizer.special_tokens, PLACE))
    data = dataclasses.replace(e.data, tokenizer=tokenizer, task=dataclasses.replace(e.data.task, layout=layout))
    return dataclasses.replace(e, data=data, objective=dataclasses.replace(e.objective, lm_weight=0.0))
