"""An ELMo run that takes seconds, as a config file: --config=tests/experiments/small_elmo.py:CORPUS_FOLDER."""

import dataclasses

from jaxnlp.data.text.characters import Characters
from jaxnlp.models.elmo import ElmoConfig
from jaxnlp.objectives.bilm import BiLM
from jaxnlp.training.experiment import Experiment
from tests.experiments import small


def get_config(corpus: str) -> Experiment:
    e = small.get_config(corpus)
    sizes = {"max_chars": 5, "char_dim": 4, "filters": ((1, 8), (3, 8)), "num_highway": 1, "embed_dim": 16}
    return dataclasses.replace(
        e,
        model=ElmoConfig(**sizes, hidden_dim=16, dropout_rate=0.1),
        data=dataclasses.replace(e.data, task=Characters(max_chars=5)),
        objective=BiLM(),
    )
