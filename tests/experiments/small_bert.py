"""A BERT run that takes seconds, as a config file: --config=tests/experiments/small_bert.py:CORPUS_FOLDER."""

from jaxnlp.data.text.masking import Masked
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.models.bert import BertConfig
from jaxnlp.objectives.masked_lm import MaskedLM
from jaxnlp.training.experiment import Experiment
from tests.experiments.small import get_config as small


def get_config(corpus: str) -> Experiment:
    experiment = small(corpus)
    experiment.model = BertConfig(max_length=128, num_layers=1, num_heads=2, embed_dim=16)
    experiment.data.tokenizer = Bytes(special_tokens=("[CLS]", "[SEP]", "[MASK]"))
    experiment.data.task = Masked()
    experiment.objective = MaskedLM()
    return experiment
