"""T5 and T5 1.1 at their published sizes (Raffel et al. 2020, arXiv:1910.10683, section 3.7).

Variants: "small" (60M parameters), "base" (220M), "large" (770M), "3b", "11b"; "1.1-small" (77M), "1.1-base" (250M),
"1.1-large" (780M), "1.1-xl" (3B), "1.1-xxl" (11B).

  python -m experiments.train --config=configs/t5/t5.py:base --workdir=runs/t5 --dry_run

As in the paper, the objective is span corruption and the optimizer Adafactor with an inverse-square-root schedule. Set
`data` to a corpus tokenized by experiments.tokenize. To start from published weights, see
docs/guides/huggingface_checkpoints.md.
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sentinels import sentinels
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.text.span_corruption import SpanCorruption
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.t5 import T5Config, t5_v1_0
from jaxnlp.nn.policy import Policy
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment

FIRST = {
    "small": {},
    "base": {"num_layers": 12, "num_heads": 12, "embed_dim": 768, "mlp_dim": 3072},
    "large": {"num_layers": 24, "num_heads": 16, "embed_dim": 1024, "mlp_dim": 4096},
    "3b": {"num_layers": 24, "num_heads": 32, "embed_dim": 1024, "head_dim": 128, "mlp_dim": 16384},
    "11b": {"num_layers": 24, "num_heads": 128, "embed_dim": 1024, "head_dim": 128, "mlp_dim": 65536},
}
SECOND = {
    "1.1-small": {},
    "1.1-base": {"num_layers": 12, "num_heads": 12, "embed_dim": 768, "mlp_dim": 2048},
    "1.1-large": {"num_layers": 24, "num_heads": 16, "embed_dim": 1024, "mlp_dim": 2816},
    "1.1-xl": {"num_layers": 24, "num_heads": 32, "embed_dim": 2048, "mlp_dim": 5120},
    "1.1-xxl": {"num_layers": 24, "num_heads": 64, "embed_dim": 4096, "mlp_dim": 10240},
}


def get_config(variant: str = "small") -> Experiment:
    if variant not in (*FIRST, *SECOND):
        raise UserError(f"t5.py:{variant}: no such variant; expected {', '.join((*FIRST, *SECOND))}")
    common = {"scan_layers": True, "remat": "dots", "policy": Policy(compute_dtype="bfloat16"), "vocab_size": 32128}
    if variant in FIRST:
        model = t5_v1_0(**FIRST[variant], **common, dropout_rate=0.0)  # no dropout in pretraining
    else:
        model = T5Config(**SECOND[variant], **common, dropout_rate=0.0)
    return Experiment(
        model=model,
        data=DataConfig(
            source=PythonStdlib(),
            tokenizer=SentencePiece(vocab_size=32000, special_tokens=tuple(sentinels(100))),
            task=SpanCorruption(),
            seq_len=512,
            batch_size=128,
        ),
        objective=Seq2Seq(z_loss=1e-4),
        optim=OptimConfig(name="adafactor", learning_rate=1e-2, schedule="inverse_sqrt", warmup_steps=10_000),
        num_steps=524_288,
        log_every=20,
        eval_every=1000,
        checkpoint_every=1000,
    )
