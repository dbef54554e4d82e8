"""The fork test: a model file copied out of the package under a new name trains, saves and is read back."""

import dataclasses
import importlib
import sys

import numpy as np
import pytest

from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sources import Files
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.load import load
from jaxnlp.training.loops.supervised import train
from tests.entry import ROOT


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """`models/gpt.py` as `my_model.py`, with a residual branch halved: a change of one line."""
    source = (ROOT / "jaxnlp" / "models" / "gpt.py").read_text()
    changed = source.replace(
        "x_BTD = x_BTD + drop(feed(norm_2(x_BTD)), deterministic=deterministic)",
        "x_BTD = x_BTD + 0.5 * drop(feed(norm_2(x_BTD)), deterministic=deterministic)",
    )
    assert changed != source
    (tmp_path / "my_model.py").write_text(changed.replace("GPTConfig", "MyConfig"))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_model")
    sys.modules.pop("my_model")


def test_a_copied_model_file_trains_and_reads_back(fork, corpus, tmp_path):
    source = Files(train=f"{corpus}/train.txt", validation=f"{corpus}/validation.txt", document="paragraph")
    experiment = Experiment(
        model=fork.MyConfig(max_length=32, num_layers=1, num_heads=2, embed_dim=16),
        data=DataConfig(source=source, tokenizer=Bytes(), seq_len=16, batch_size=8, prefetch_threads=0),
        num_steps=3,
        log_every=1,
        peak_flops=1e12,
    )
    result = train(experiment, tmp_path / "run")
    assert np.isfinite(result.validation["loss"])
    assert configs.to_dict(result.experiment)["model"]["class"] == "my_model:MyConfig"
    again = load(tmp_path / "run")
    assert type(again.saved.experiment.model) is fork.MyConfig
    out = again.generator()(again.params, [[100, 101]], 5)
    assert len(out[0]) <= 5
    # The change is in effect: the same parameters in the house's own model give other logits.
    from jaxnlp.models.gpt import GPTConfig
    from jaxnlp.sharding.axes import make_apply

    fields = {f.name: getattr(again.saved.experiment.model, f.name) for f in dataclasses.fields(GPTConfig)}
    tokens = np.arange(10)[None]
    ours = make_apply(GPTConfig(**fields).build())(again.params, tokens)
    theirs = make_apply(again.saved.experiment.model.build())(again.params, tokens)
    assert not np.allclose(ours, theirs)


def test_a_checkpoint_of_a_fork_that_is_gone_says_what_is_missing(fork, corpus, tmp_path):
    from jaxnlp.errors import UserError

    configs.save_json(fork.MyConfig(), tmp_path / "c.json")
    module = sys.modules.pop("my_model")
    path = tmp_path / "my_model.py"
    path.rename(tmp_path / "elsewhere.txt")
    importlib.invalidate_caches()
    try:
        with pytest.raises(
            UserError, match=r"'my_model:MyConfig' cannot be imported .*is the fork it comes from on the path"
        ):
            configs.load_json(tmp_path / "c.json")
    finally:
        sys.modules["my_model"] = module
