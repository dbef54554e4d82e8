"""The benches of docs/measurements/peft.md run end to end on tiny models, and the page shows the stored figures."""

import json

import jax
import pytest

from configs.bert.tune_docstrings import METHODS
from experiments.bench.lora_figures import weight_gradients
from experiments.bench.peft_tables import NAMES, RATES, into_page, latency_table
from jaxnlp import cli
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.peft.lora import LoRA
from jaxnlp.planning.planner import step_batch
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build
from tests.entry import run

BERT = """
from configs.bert.finetune import get_config as finetune
from jaxnlp.optim import OptimConfig
import dataclasses
def get_config():
    e = finetune("sequence_classification")
    trunk = dataclasses.replace(e.model.body, num_layers=1, num_heads=2, embed_dim=16)
    data = dataclasses.replace(e.data, seq_len=16, batch_size=4)
    model = dataclasses.replace(e.model, body=trunk)
    return dataclasses.replace(e, model=model, data=data, optim=OptimConfig(), num_steps=1)
"""


def test_each_method_has_a_rate_and_a_name_and_a_wrong_one_is_told():
    assert set(METHODS) == set(RATES) == set(NAMES)
    with pytest.raises(UserError, match="lor: expected METHOD or METHOD,FOLDER, such as lora"):
        cli.load("configs/bert/tune_docstrings.py:lor")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A run of a tiny BERT, to tune."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "config.py").write_text(BERT)
    done = run("experiments.train", f"--config={folder}/config.py", f"--workdir={folder}/run")
    assert done.code == 0, done.err
    return folder / "run"


@pytest.mark.slow
def test_quality_from_an_encoder_to_a_table_goes_on_where_it_was(encoder, tmp_path):
    flags = [
        f"--folder={encoder}",
        f"--json={tmp_path}/a.json",
        f"--out={tmp_path}/a.png",
        "--steps=21",
        "--rounds=1",
        "--page=",
    ]
    done = run("experiments.bench.peft_quality", *flags, "--methods=bitfit", "--seeds=1", "--turn=1")
    assert done.code == 0, done.err
    assert "| BitFit |" in done.out and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    first = json.loads((tmp_path / "a.json").read_text())
    done = run("experiments.bench.peft_quality", *flags, "--methods=bitfit,head", "--seeds=1", "--turn=1")
    assert done.code == 0 and "bitfit, seed 0:" not in done.err and "head, seed 0:" in done.err
    results = json.loads((tmp_path / "a.json").read_text())
    assert results["runs"]["bitfit"] == first["runs"]["bitfit"]
    assert (
        results["costs"]["head"]["trained"] < results["costs"]["bitfit"]["trained"] < results["costs"]["head"]["total"]
    )


@pytest.mark.parametrize(("bench", "flag"), [("quality", "--methods=lor"), ("latency", "--shapes=bert")])
def test_a_wrong_name_is_told(bench, flag):
    done = run(f"experiments.bench.peft_{bench}", flag)
    assert (done.code, done.out) == (2, "") and done.err.startswith(f"error: {flag}: no such")


@pytest.mark.slow
def test_latency_is_measured_of_what_is_live_and_what_is_merged(tmp_path):
    flags = (
        "--shapes=baby",
        "--methods=LoRA",
        "--rounds=1",
        "--seconds=0",
        "--prompt=2",
        "--new=2",
        f"--json={tmp_path}/a.json",
        "--page=",
    )
    done = run("experiments.bench.peft_latency", *flags)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "a.json").read_text())["baby"]
    assert all(len(walls) == 1 for walls in results["seconds"].values())
    assert list(results["seconds"]) == ["base", "base, again", "LoRA", "LoRA, merged"]
    assert latency_table(results).splitlines()[2].startswith("| base |")


def test_a_table_goes_into_its_place_on_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n\n<!-- x -->\nold\n<!-- end of x -->\n\nb\n")
    into_page(str(page), "x", "new")
    assert page.read_text() == "a\n\n<!-- x -->\n\nnew\n\n<!-- end of x -->\n\nb\n"
    with pytest.raises(UserError, match="markers <!-- y --> and <!-- end of y --> are missing"):
        into_page(str(page), "y", "new")


def test_a_compiled_lora_step_has_no_result_of_the_shape_of_a_kernel():
    model = GPTConfig(vocab_size=32, max_length=8, num_layers=3, num_heads=2, embed_dim=12, scan_layers=True)
    data, counts = DataConfig(seq_len=8, batch_size=2), {}
    for name, tuning in (("LoRA", LoRA(rank=2, targets=("query", "value", "up", "down"))), ("full", None)):
        program = build(Experiment(model=model, data=data, peft=tuning), jax.devices()[:1])
        text = program.step.lower(program.abstract, step_batch(program)).compile().as_text()
        counts[name] = weight_gradients(text, {(3, 12, 48), (3, 48, 12)})
    assert counts["LoRA"] == 0 < counts["full"]
