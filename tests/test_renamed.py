"""Configs and runs saved by an earlier version load and resume with the numbers of that version.

`fixtures/configs_of_november.json.xz` holds every config of `configs/` and the defaults of every config class;
`fixtures/runs_of_november.tar.xz` five runs of four steps, their data, and the log of each when that version trained it
on to six. `fixtures/layouts_of_november.tar.xz` has eight more, one for each layout of a checkpoint:

  t5           two stacks, relative positions, Adafactor's factored moments
  transformer  two stacks, cross-attention, tied embeddings, records of text pairs, Lion
  scanned      a Llama with stacked layers, Muon's two groups of parameters
  pipelined    a Llama over two stages with two virtual stages each, written by two devices
  nf4, int8    LoRA on a quantised base, which a checkpoint names by its sum of bits
  float16      a loss scale that has left its first value
  master       bfloat16 parameters, float32 copies in the optimizer's state
"""

import importlib
import json
import lzma
import pathlib
import tarfile

import numpy as np
import pytest

from jaxnlp import config as configs
from jaxnlp import renamed
from jaxnlp.peft.lora import LoRA
from jaxnlp.training.run_folder.best import Best
from jaxnlp.training.run_folder.metric_log import read_log
from tests.entry import ROOT, run

FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(scope="module")
def saved() -> dict:
    return json.loads(lzma.decompress((FIXTURES / "configs_of_november.json.xz").read_bytes()))


def test_every_config_saved_before_the_renames_loads(saved):
    for name, data in saved.items():
        if ":_" not in name:  # private classes are not in saved configs
            configs.from_dict(data)


def test_every_new_name_exists():
    for module in renamed.MODULES.values():
        importlib.import_module(module)
    for old, new in renamed.CLASSES.items():
        module, _, old_class = old.partition(":")
        module, new = new.split(":") if ":" in new else (module, new)
        assert hasattr(importlib.import_module(module), new), f"{module}:{old_class} -> {new}"
    for name, fields in renamed.FIELDS.items():
        module, _, cls = name.partition(":")
        known = getattr(importlib.import_module(module), cls).__dataclass_fields__
        assert set(fields.values()) - {""} <= set(known), name


def test_an_unknown_class_is_still_an_error():
    assert renamed.current_class("jaxnlp.data.sources:Embedded") == "jaxnlp.data.text.sources:PythonStdlib"
    assert renamed.current_class("my_model:MyConfig") == "my_model:MyConfig"
    assert renamed.current_class("jaxnlp.peft.partial:Full") == "jaxnlp.peft.full:Full"


class Fork(LoRA):
    """A PEFT method of a fork."""


def test_a_renamed_field_of_a_base_class_is_renamed_in_a_fork_too():
    data = {"class": f"{__name__}:Fork", "rank": 2, "whole": ["norm/*"], "dora": True}
    method = configs.from_dict(data)
    assert isinstance(method, Fork) and method.modules_to_save == ("norm/*",) and method.use_dora


TOKENIZERS = "jaxnlp.data.tokenizer"


@pytest.mark.parametrize(
    "saved, field, value",
    [
        ({"class": f"{TOKENIZERS}:Bytes", "specials": ["[CLS]"]}, "special_tokens", ("[CLS]",)),
        ({"class": f"{TOKENIZERS}:SentencePiece", "specials": ["[CLS]"]}, "special_tokens", ("[CLS]",)),
        ({"class": f"{TOKENIZERS}:HuggingFace", "separator": "</s>"}, "eos_token", "</s>"),
        ({"class": "jaxnlp.data.from_run:FromRun", "path": "x", "specials": ["<s>"]}, "special_tokens", ("<s>",)),
        ({"class": "jaxnlp.data.from_run:FromRun", "path": "x", "separator": "</s>"}, "eos_token", "</s>"),
    ],
)
def test_a_renamed_field_is_read_under_its_old_name(saved, field, value):
    assert getattr(configs.from_dict(saved), field) == value


def resumed(name: str, folder: pathlib.Path, devices: int = 1) -> tuple[dict, dict]:
    """The log of the run trained on to six steps, and that of the version that saved it, by step and kind."""
    for archive_name in ("runs_of_november.tar.xz", "layouts_of_november.tar.xz"):
        with tarfile.open(FIXTURES / archive_name) as archive:
            archive.extractall(folder, filter="data")
    env = {"JAX_NUM_CPU_DEVICES": str(devices)}
    done = run("experiments.train", f"--workdir={name}", "--config.num_steps=6", cwd=folder, env=env)
    assert done.code == 0, done.err
    assert "resuming at step 4 of 6" in done.err
    rows = [read_log(path) for path in (folder / name / "metrics.jsonl", folder / f"{name}.continued.jsonl")]
    ours, theirs = ({(row["step"], row["kind"]): row for row in part} for part in rows)
    assert ours.keys() == theirs.keys() and max(step for step, _ in ours) == 6
    return ours, theirs


def assert_same_losses(ours: dict, theirs: dict) -> None:
    # Other machines, and the compiler flags of tests, round differently.
    losses = [[log[row]["loss"] for row in theirs] for log in (ours, theirs)]
    np.testing.assert_allclose(*losses, rtol=2e-4)


@pytest.mark.parametrize("name", ["gpt", "bert", "elmo", "task", "tuned"])
def test_a_run_saved_before_the_renames_resumes(name, tmp_path):
    assert_same_losses(*resumed(name, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "transformer", "scanned", "nf4", "int8", "master"])
def test_every_layout_of_a_checkpoint_resumes(name, tmp_path):
    assert_same_losses(*resumed(name, tmp_path))


@pytest.mark.slow
def test_a_pipelined_run_resumes_on_as_many_devices(tmp_path):
    assert_same_losses(*resumed("pipelined", tmp_path, devices=2))


@pytest.mark.slow
def test_a_float16_run_resumes_with_its_loss_scale(tmp_path):
    ours, theirs = resumed("float16", tmp_path)
    assert_same_losses(ours, theirs)
    steps = [row for row in theirs if row[1] == "train"]
    for field in ("loss_scale", "skipped"):
        assert [ours[row][field] for row in steps] == [theirs[row][field] for row in steps]
    # Otherwise the initial scale would pass too.
    assert theirs[5, "train"]["loss_scale"] < theirs[1, "train"]["loss_scale"]


def test_best_of_an_older_config_names_the_current_evaluation():
    assert str(Best.parse("whole_validation/loss:min")) == "full_validation/loss:min"
    assert str(Best.parse("squad/f1:max")) == "squad/f1:max"
