"""Config changes with which a run may resume."""

import dataclasses

import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.run_folder import resume


def experiment(**changes):
    """changes: fields by path, as {"data.seed": 1}."""
    config = Experiment(model=GPTConfig(num_layers=2), data=DataConfig(), optim=OptimConfig())
    for path, value in changes.items():
        holder, _, name = path.rpartition(".")
        if holder:
            part = dataclasses.replace(getattr(config, holder), **{name: value})
            config = dataclasses.replace(config, **{holder: part})
        else:
            config = dataclasses.replace(config, **{name: value})
    return config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("model.num_layers", 3),
        ("model.tie_embeddings", False),
        ("optim.name", "lion"),
        ("optim.b1", 0.5),
        ("optim.master_dtype", "float32"),
        ("data.seed", 1),
        ("data.shuffle", False),
        ("data.seq_len", 7),
        ("data.attend_across_documents", True),
    ],
)
def test_what_the_state_or_the_order_of_the_data_depends_on_cannot_change(path, value):
    with pytest.raises(UserError, match=f"^{path}: the checkpoint has .* and the config has {value!r}"):
        resume.changes(experiment(), experiment(**{path: value}))


@pytest.mark.parametrize(
    ("path", "value"),
    [("optim.learning_rate", 0.5), ("model.dropout_rate", 0.3), ("model.remat", "full"), ("data.batch_size", 3)],
)
def test_other_changes_are_listed(path, value):
    ((changed, _, new),) = resume.changes(experiment(), experiment(**{path: value}))
    assert (changed, new) == (path, value)
