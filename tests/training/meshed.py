"""The small run over any mesh: --config=tests/training/meshed.py:CORPUS_FOLDER,PRESET,axis=n,..."""

from jaxnlp.nn.ring import Ring
from jaxnlp.sharding.presets import PRESETS
from tests.experiments import small


def get_config(variant: str):
    corpus, preset, *parts = variant.split(",")
    sizes = {axis: int(size) for axis, size in (part.split("=") for part in parts)}
    experiment = small.get_config(corpus)
    experiment.sample_tokens = 0
    experiment.sharding = PRESETS[preset].over(**sizes)
    tables = ("params", "gradients", "optimizer", "activations")
    for table in (getattr(experiment.sharding, name) for name in tables):
        if table is not None:
            table["vocab"] = None  # 257 is prime
    experiment.model.num_layers = 2
    if experiment.sharding.pipeline is not None:
        experiment.model.scan_layers, experiment.accum_steps = True, 4
    if sizes.get("sequence", 1) > 1:
        experiment.model.attention = Ring()
    return experiment
