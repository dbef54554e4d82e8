"""A classifier's run of seconds, as a config file: --config=tests/experiments/small_task.py:FOLDER.

The folder has train.jsonl and validation.jsonl, records with a text and a label, "good" or "bad".
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.classification import Classification
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.heads import FineTuned, SequenceClassification
from jaxnlp.objectives.classify import Classify
from jaxnlp.optim import OptimConfig
from jaxnlp.train.experiment import Experiment


def get_config(folder: str) -> Experiment:
    trunk = BertConfig(max_len=32, num_layers=1, num_heads=2, embed_dim=16, heads=("pooler",))
    return Experiment(
        model=FineTuned(trunk=trunk, head=SequenceClassification(num_classes=2)),
        data=DataConfig(
            source=Records(train=f"{folder}/train.jsonl", validation=f"{folder}/validation.jsonl"),
            tokenizer=Bytes(specials=("[CLS]", "[SEP]", "[MASK]")),
            examples=Classification(classes=("bad", "good")),
            seq_len=32,
            batch_size=8,
            prefetch_threads=0,
        ),
        objective=Classify(),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=1),
        steps=4,
        eval_every=0,
        checkpoint_every=4,
        peak_flops=1e12,
    )
