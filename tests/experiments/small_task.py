"""A classifier run that takes seconds, as a config file: --config=tests/experiments/small_task.py:FOLDER.

The folder has train.jsonl and validation.jsonl, records with a text and a label, "good" or "bad".
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.heads import ModelWithHead, SequenceClassificationHead
from jaxnlp.objectives.sequence_classification import SequenceClassification
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment


def get_config(folder: str) -> Experiment:
    body = BertConfig(max_length=32, num_layers=1, num_heads=2, embed_dim=16, heads=("pooler",))
    return Experiment(
        model=ModelWithHead(body=body, head=SequenceClassificationHead(num_classes=2)),
        data=DataConfig(
            source=Records(train=f"{folder}/train.jsonl", validation=f"{folder}/validation.jsonl"),
            tokenizer=Bytes(special_tokens=("[CLS]", "[SEP]", "[MASK]")),
            task=SequenceClassificationTask(classes=("bad", "good")),
            seq_len=32,
            batch_size=8,
            prefetch_threads=0,
        ),
        objective=SequenceClassification(),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=1),
        num_steps=4,
        eval_every=0,
        checkpoint_every=4,
        peak_flops=1e12,
    )
