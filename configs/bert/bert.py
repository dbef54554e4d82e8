"""BERT and RoBERTa at their published sizes.

Variants: "base" (110M parameters), "large" (340M) (Devlin et al. 2019, arXiv:1810.04805, section 3 and appendix A.2);
"roberta-base" (125M), "roberta-large" (355M) (Liu et al. 2019, arXiv:1907.11692, table 9).

  python -m experiments.train --config=configs/bert/bert.py:base --workdir=runs/base --dry_run

Set `data` to a corpus tokenized by experiments.tokenize (docs/guides/data.md), with the special tokens [CLS], [SEP]
and [MASK]. The original BERT run used sequences of 128 tokens for the first 90% of the steps. To reproduce it, train
with --config.data.seq_len=128 --config.num_steps=900000 --config.optim.total_steps=1000000 first, then resume without
these overrides. To start from published weights, see docs/guides/huggingface_checkpoints.md.
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.masking import Masked
from jaxnlp.data.text.sentences import FullSentences
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.bert import BertConfig, roberta
from jaxnlp.nn.policy import Policy
from jaxnlp.objectives.masked_lm import MaskedLM
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment

SIZES = {
    "base": {"num_layers": 12, "num_heads": 12, "embed_dim": 768},
    "large": {"num_layers": 24, "num_heads": 16, "embed_dim": 1024},
}
BERT = OptimConfig(
    learning_rate=1e-4, schedule="linear", warmup_steps=10_000, final_fraction=0.0, weight_decay=0.01, b2=0.999
)
ROBERTA = {"base": (6e-4, 24_000), "large": (4e-4, 30_000)}  # learning rate, warm-up


def get_config(variant: str = "base") -> Experiment:
    size = variant.removeprefix("roberta-")
    if size not in SIZES:
        names = [*SIZES, *(f"roberta-{name}" for name in SIZES)]
        raise UserError(f"bert.py:{variant}: no such variant; expected {', '.join(names)}")
    deep = {**SIZES[size], "scan_layers": True, "remat": "dots", "policy": Policy(compute_dtype="bfloat16")}
    if size == variant:
        model, task, optim = BertConfig(vocab_size=30522, **deep), Masked(static_copies=10), BERT
        batch_size, steps = 256, 1_000_000
    else:
        rate, warmup = ROBERTA[size]
        model, task, batch_size, steps = roberta(**deep), Masked(text=FullSentences()), 8192, 500_000
        optim = OptimConfig(
            learning_rate=rate,
            schedule="linear",
            warmup_steps=warmup,
            final_fraction=0.0,
            weight_decay=0.01,
            b2=0.98,
            epsilon=1e-6,
            clip_norm=None,
        )
    return Experiment(
        model=model,
        data=DataConfig(
            source=PythonStdlib(),
            tokenizer=SentencePiece(vocab_size=2048, special_tokens=("[CLS]", "[SEP]", "[MASK]")),
            task=task,
            seq_len=512,
            batch_size=batch_size,
        ),
        objective=MaskedLM(),
        optim=optim,
        accum_steps=batch_size // 64,
        num_steps=steps,
        log_every=100,
        eval_every=5000,
        checkpoint_every=5000,
    )
