"""ELMo from the command line: training, resuming, evaluation and features."""

import json
import math

import numpy as np

from jaxnlp.data.pipeline import open_split
from jaxnlp.models import elmo
from jaxnlp.training.load import load
from tests.entry import ROOT, run
from tests.experiments.small_runs import arrays, assert_same_bits, losses

CONFIG = ROOT / "tests" / "experiments" / "small_elmo.py"


def train(corpus, workdir, *overrides):
    done = run("experiments.train", f"--config={CONFIG}:{corpus}", f"--workdir={workdir}", *overrides)
    assert done.code == 0, done.err
    return done


def test_train_resume_evaluate_and_features(corpus, tmp_path):
    done = train(corpus, tmp_path / "whole")
    for words in ("bits/byte", "the mean of two directions: forward", "from the words before", "experiments.evaluate"):
        assert words in done.out, words
    logged = losses(tmp_path / "whole")
    assert logged[12] < logged[1] - 0.5

    train(corpus, tmp_path / "half", "--config.num_steps=4", "--config.optim.total_steps=12")
    train(corpus, tmp_path / "half", "--config.num_steps=12")
    assert_same_bits(arrays(tmp_path / "whole", 12), arrays(tmp_path / "half", 12))

    done = run("experiments.evaluate", f"--workdir={tmp_path / 'whole'}", "--json")
    assert done.code == 0, done.err
    metrics = json.loads(done.out)
    saved = load(tmp_path / "whole")
    e, tokenizer = saved.program.experiment, saved.saved.tokenizer
    store = open_split(e.data, "validation", tokenizer)
    assert metrics["tokens"] == len(store) - 1  # each token once
    assert math.isclose(2 * metrics["loss"], metrics["forward_nll"] + metrics["backward_nll"], rel_tol=1e-6)
    bits = metrics["loss"] / math.log(2) * (len(store) - 1) / store.meta.num_bytes
    assert math.isclose(metrics["bits_per_byte"], bits, rel_tol=1e-6)

    done = run("experiments.generate", f"--workdir={tmp_path / 'whole'}", "--prompt=def")
    assert done.code == 2 and done.err.splitlines()[-1].startswith("error: ElmoConfig: cannot generate text")
    done = run("experiments.attention_map", f"--workdir={tmp_path / 'whole'}", "--text=def")
    assert done.code == 2 and "ElmoConfig: the model has no attention layers" in done.err

    vectors = elmo.features(e.model, saved.params, [["def", "never-seen"], ["x"]])
    assert [x.shape for x in vectors] == [(3, 2, 32), (3, 1, 32)] and np.isfinite(vectors[0]).all()
