"""The small classifier with PEFT: --config=tests/interop/small_tuned_task.py:FOLDER,RUN."""

from jaxnlp.peft.lora import LoRA
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.init.pretrained import Pretrained
from tests.experiments import small_task


def get_config(variant: str) -> Experiment:
    folder, run = variant.split(",")
    experiment = small_task.get_config(folder)
    experiment.peft, experiment.init_from = LoRA(rank=2), Pretrained(path=run)
    return experiment
