"""The small run, tuned: --config=tests/experiments/small_tuned.py:CORPUS_FOLDER,RUN."""

from jaxnlp.peft.lora import LoRA
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init.pretrained import Pretrained
from tests.experiments import small


def get_config(variant: str) -> Experiment:
    corpus, run = variant.split(",")
    experiment = small.get_config(corpus)
    experiment.peft, experiment.init_from = LoRA(rank=2), Pretrained(path=run)
    return experiment
