"""The Transformer with the sizes and training settings of Vaswani et al. 2017, arXiv:1706.03762, table 3.

The variant is SIZE or SIZE,FOLDER. SIZE is "base" (65M parameters) or "big" (213M). FOLDER contains train.jsonl and
validation.jsonl with lines {"source": "...", "target": "..."} (also .csv, .tsv, .parquet, .gz; any number of files
train*). Without FOLDER it trains on `StdlibCalls`, built from the standard library, as a functional test.

  python -m experiments.train --config=configs/transformer/transformer.py:base,data/wmt14 --workdir=runs/translate

The batch of 392 pairs of up to 64 tokens corresponds to 25,000 source and 25,000 target tokens.
"""

from jaxnlp.data.corpora.stdlib_tasks import StdlibCalls
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.nn.policy import Policy
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.optim import OptimConfig, noam_peak
from jaxnlp.training.experiment import Experiment

WARMUP = 4000
SIZES = {  # sizes, dropout rate, steps
    "base": ({}, 0.1, 100_000),
    "big": ({"embed_dim": 1024, "num_heads": 16, "mlp_dim": 4096}, 0.3, 300_000),
}


def get_config(variant: str = "base") -> Experiment:
    size, _, folder = variant.partition(",")
    if size not in SIZES:
        raise UserError(
            f"transformer.py:{variant}: no such size; expected {', '.join(SIZES)}, for example base,data/wmt14"
        )
    sizes, dropout_rate, steps = SIZES[size]
    model = TransformerConfig(
        **sizes,
        vocab_size=37_000 if folder else None,
        dropout_rate=dropout_rate,
        scan_layers=True,
        policy=Policy(compute_dtype="bfloat16"),
    )
    source = Records(train=f"{folder}/train*", validation=f"{folder}/validation*") if folder else StdlibCalls()
    peak = noam_peak(model.embed_dim, WARMUP)
    return Experiment(
        model=model,
        data=DataConfig(
            source=source,
            tokenizer=SentencePiece(vocab_size=37_000 if folder else 2048),
            task=TextPairs(truncate=True),
            seq_len=64,
            batch_size=392,
        ),
        objective=Seq2Seq(label_smoothing=0.1),
        optim=OptimConfig(
            learning_rate=peak,
            schedule="inverse_sqrt",
            warmup_steps=WARMUP,
            weight_decay=0.0,
            b2=0.98,
            epsilon=1e-9,
            clip_norm=None,
        ),
        num_steps=steps,
        log_every=20,
        eval_every=1000,
        checkpoint_every=1000,
    )
