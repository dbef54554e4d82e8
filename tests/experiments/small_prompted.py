"""The small run, with a prompt in front of its texts: --config=tests/experiments/small_prompted.py:CORPUS_FOLDER."""

from jaxnlp.peft.prompt import Prompt
from jaxnlp.training.experiment import Experiment
from tests.experiments import small


def get_config(corpus: str) -> Experiment:
    experiment = small.get_config(corpus)
    experiment.peft, experiment.data.attend_across_documents = Prompt(length=4), True
    return experiment
