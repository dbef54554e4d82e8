"""Configs and runs saved by an earlier version load, resume and give the numbers of that version.

`fixtures/configs_of_november.json.xz` holds every config of `configs/` and the defaults of every config class;
`fixtures/runs_of_november.tar.xz` five runs of four steps, their data, and the log of each when that version trained it
on to six.
"""

import importlib
import json
import lzma
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
        if ":_" not in name:  # a private class is in no saved config
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
    """A method of a fork."""


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


@pytest.mark.parametrize("name", ["gpt", "bert", "elmo", "task", "tuned"])
def test_a_run_saved_before_the_renames_resumes(name, tmp_path):
    with tarfile.open(FIXTURES / "runs_of_november.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    done = run("experiments.train", f"--workdir={name}", "--config.num_steps=6", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "resuming at step 4 of 6" in done.err
    rows = [read_log(path) for path in (tmp_path / name / "metrics.jsonl", tmp_path / f"{name}.continued.jsonl")]
    ours, theirs = ({(row["step"], row["kind"]): row["loss"] for row in part} for part in rows)
    assert ours.keys() == theirs.keys() and max(step for step, _ in ours) == 6
    # Another machine, and tests' compiler flags, round otherwise.
    np.testing.assert_allclose([ours[k] for k in theirs], list(theirs.values()), rtol=2e-4)


def test_best_of_an_older_config_names_the_current_evaluation():
    assert str(Best.parse("whole_validation/loss:min")) == "full_validation/loss:min"
    assert str(Best.parse("squad/f1:max")) == "squad/f1:max"
