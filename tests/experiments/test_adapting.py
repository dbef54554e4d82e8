"""Continued pretraining: its data, its trained parameters, and a run initialised from it."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxnlp import cli
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.errors import FieldError, UserError
from jaxnlp.peft.prompt import Prompt
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.init.frozen_base import init_state
from jaxnlp.training.init.pretrained import Pretrained
from jaxnlp.training.load import load
from jaxnlp.training.loops.supervised import train
from jaxnlp.training.setup import prepare
from jaxnlp.training.step.program import build
from jaxnlp.trees import select
from tests.experiments import small

FILE = "configs/gpt/adapt.py"


@pytest.mark.parametrize("variant", [",texts", "runs/tiny,,half", "runs/tiny,,upper,x"])
def test_a_wrong_variant_is_told(variant):
    with pytest.raises(UserError, match=f"{variant}: expected RUN, RUN,FILES or RUN,FILES,PARTS"):
        cli.load(f"{FILE}:{variant}")


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    e = small.get_config(str(corpus))
    model = dataclasses.replace(e.model, num_layers=2, scan_layers=True)
    train(
        dataclasses.replace(e, model=model, sharding=Sharding(), num_steps=3, eval_batches=1, sample_tokens=0), folder
    )
    return str(folder)


def shortened(variant: str, corpus, **changes):
    """The config over three steps of the small corpus."""
    e, own = cli.load(f"{FILE}:{variant}"), small.get_config(str(corpus))
    source = dataclasses.replace(e.data.source, document="paragraph")
    data = dataclasses.replace(own.data, source=source, tokenizer=e.data.tokenizer, attend_across_documents=True)
    short = {
        "optim": own.optim,
        "num_steps": 3,
        "eval_batches": 1,
        "eval_every": 0,
        "sample_tokens": 0,
        "peak_flops": 1e12,
    }
    return dataclasses.replace(e, data=data, sharding=Sharding(), **{**short, **changes})


def test_it_goes_on_from_a_run_with_its_ids_on_other_texts(corpus, base):
    e = cli.load(f"{FILE}:{base}")
    assert e.data.source == PythonStdlib(part="docstrings") and e.peft is None
    assert e.init_from == Pretrained(path=base) and e.data.tokenizer.path == base
    assert (e.model.num_layers, e.model.scan_layers, e.model.vocab_size) == (2, False, None)
    e = cli.load(f"{FILE}:{base},{corpus}/train.txt,upper")
    assert e.data.source.train == f"{corpus}/train.txt"
    assert e.peft.frozen == ("embed/*", "positions/*", "block_0/*")


@pytest.mark.slow
def test_frozen_parts_stay_and_another_run_begins_from_the_whole(corpus, base, tmp_path):
    result = train(shortened(f"{base},{corpus}/train.txt,upper", corpus), tmp_path / "upper")
    before, after = load(base).params, result.state.all_params
    assert set(result.state.params) == {"block_1", "norm"}
    jax.tree.map(np.testing.assert_array_equal, after["embed"], before["embed"])
    for i, same in ((0, True), (1, False)):
        layer = jax.tree.map(lambda x, i=i: x[i], before["blocks"])
        equal = jax.tree.map(lambda a, b: bool((a == b).all()), after[f"block_{i}"], layer)
        assert all(jax.tree.leaves(equal)) == same

    for parts in ("lora", "prompt"):
        e = shortened(f"{base},{corpus}/train.txt,lora", corpus)
        e = dataclasses.replace(e, peft=Prompt(length=2)) if parts == "prompt" else e
        train(e, tmp_path / parts)
    for parts in ("upper", "lora"):
        loaded = load(tmp_path / parts)
        tuning = loaded.program.tuning
        assert tuning is not None
        wanted = tuning.merge(
            select(loaded.params, tuning.shapes), select(loaded.params, loaded.program.abstract.params)
        )
        state, report = begun(f"{tmp_path / parts},{corpus}/train.txt", corpus)
        assert report.missing == report.unexpected == []
        jax.tree.map(np.testing.assert_array_equal, state.params, wanted)
    with pytest.raises(
        FieldError, match=r"init_from.path=.*Prompt\(\).* cannot be merged, .*; use the init_from of that run"
    ):
        begun(f"{tmp_path / 'prompt'},{corpus}/train.txt", corpus)


def begun(variant: str, corpus):
    e, tokenizer = prepare(shortened(variant, corpus))
    return init_state(build(e), tokenizer, print)
