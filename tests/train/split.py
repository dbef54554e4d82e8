"""The small run over four devices, data=2 x fsdp=2: --config=tests/train/split.py:CORPUS_FOLDER."""

from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import FSDP, Sharding
from tests.experiments import small


def get_config(corpus: str):
    experiment = small.get_config(corpus)
    experiment.sharding = Sharding(mesh=MeshConfig(data=2, fsdp=2), params=dict(FSDP))
    return experiment
