"""Files of tuned parameters: every method round-trips bit-exactly; and what is rejected."""

import dataclasses
import errno
import json
import os

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxnlp.errors import UserError
from jaxnlp.peft.bitfit import BitFit
from jaxnlp.peft.files import load, read, save
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.method import PEFTMethod
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt, PTuning
from jaxnlp.peft.tuning import attach
from jaxnlp.trees import merge

from .test_properties import METHODS, model, moved

ALL: dict[str, PEFTMethod] = {
    **METHODS,
    "lora and a norm": LoRA(rank=2, modules_to_save=("norm/*",), base_dtype="bfloat16"),
    "prefix": Prefix(length=2),
    "prefix of a network": Prefix(length=2, hidden_dim=3),
    "prompt": Prompt(length=2),
    "p-tuning": PTuning(length=2, encoder="lstm", hidden_dim=3),
}
UNROLLED = ("lora", "bitfit", "prefix of a network")


def written(path, name="gpt", method: PEFTMethod = ALL["lora"]):
    module, inputs, base = model(name)
    tuning = attach(method, module, *inputs)
    tuned = moved(tuning.init(jax.random.key(1), base))
    save(path, tuning, tuned, base)
    return tuning, tuned


@pytest.mark.parametrize(
    ("name", "method"), [*(("gpt scanned", m) for m in ALL), *(("gpt", m) for m in UNROLLED), ("foreign", "lora")]
)
def test_every_method_comes_back_to_the_bit(name, method, tmp_path):
    module, inputs, base = model(name)
    tuning, tuned = written(tmp_path / "x.safetensors", name, ALL[method])
    back, loaded = load(tmp_path / "x.safetensors", base, module, *inputs, method=ALL[method])
    jax.tree.map(np.testing.assert_array_equal, loaded, tuned)
    assert jax.tree.map(lambda x: x.dtype, loaded) == jax.tree.map(lambda x: x.dtype, tuned)
    assert (back.method, back.replaced, back.report()) == (ALL[method], tuning.replaced, tuning.report())
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_the_base_may_be_a_runs_and_a_new_head_is_kept(dtype, tmp_path):
    module, inputs, base = model("gpt")
    tuning = attach(LoRA(rank=2, base_dtype=dtype), module, *inputs, head=("norm/*",))
    tuned = moved(tuning.init(jax.random.key(1), base))
    save(tmp_path / "x.safetensors", tuning, tuned, merge(tuning.frozen(base), tuned))
    back, loaded = load(tmp_path / "x.safetensors", base, module, *inputs)
    assert back.replaced == [("norm", "bias"), ("norm", "scale")]
    jax.tree.map(np.testing.assert_array_equal, loaded, tuned)


def test_what_does_not_belong_together_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    module, inputs, base = model("gpt")
    tuning, tuned = written(path)
    with pytest.raises(UserError, match=r"x.safetensors: tuned on another base \(fingerprint \w+, got \w+\)"):
        load(path, moved(base), module, *inputs)
    wide, wide_inputs, wide_base = model("t5")
    with pytest.raises(
        UserError, match="x.safetensors: unexpected tensor block_0/.*, which LoRA.. does not tune in this model"
    ):
        load(path, wide_base, wide, *wide_inputs)
    scanned, _, scanned_base = model("gpt scanned")
    with pytest.raises(UserError, match="unexpected tensor block_0/attention/query/lora_a, which LoRA"):
        load(path, scanned_base, scanned, *inputs)
    with pytest.raises(UserError, match="another method: method.rank is 2, expected 3"):
        load(path, base, module, *inputs, method=LoRA(rank=3))
    with pytest.raises(UserError, match=r"another method: method is 'LoRA\(\)', expected 'BitFit\(\)'"):
        load(path, base, module, *inputs, method=BitFit())
    with pytest.raises(UserError, match="base: has no 'block_0'"):
        load(path, {}, module, *inputs)
    other = attach(LoRA(rank=3), module, *inputs)
    with pytest.raises(
        UserError, match=r"tuned: .*lora_a is float32\[16, 2\]; expected float32\[16, 3\] for LoRA\(\) in this model"
    ):
        save(path, other, tuned, base)
    with pytest.raises(UserError, match="tuned: .* is float16"):
        save(path, tuning, jax.tree.map(lambda x: x.astype("float16"), tuned), base)
    absent = attach(LoRA(rank=2, targets=("head",)), *_with_head())
    save(path, absent, absent.init(jax.random.key(0), _head_base()), _head_base())
    with pytest.raises(UserError, match="x.safetensors: saved for another model: peft.targets='head': no module"):
        load(path, base, module, *inputs)


def _with_head():
    module, inputs, _ = model("foreign")
    config = dataclasses.replace(model("gpt")[0].config, tie_embeddings=False)
    return config.build(), *inputs


def _head_base():
    module, *inputs = _with_head()
    return jax.jit(module.init)(jax.random.key(0), *inputs)["params"]


def edited(path, tensors=(), **fields):
    """Changes fields of the file's header, or its tensors; None removes a field."""
    arrays = safetensors.numpy.load_file(path)
    with safetensors.safe_open(path, "numpy") as file:
        header = file.metadata() | fields
    changed = {name: arrays[name] + 1 for name in tensors}
    safetensors.numpy.save_file(arrays | changed, path, {k: v for k, v in header.items() if v is not None})


def test_files_that_are_damaged_or_none_of_these(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="x.safetensors: cannot be read .No such file"):
        read(path)
    written(path)
    whole = path.read_bytes()
    method = {"class": "jaxnlp.peft.lora:LoRA", "rank": 2}
    for changes, message in (
        ({"base": None}, "its header lacks 'base'"),
        ({"merged": "yes"}, "or of a later version: its header has an unknown field 'merged'"),
        ({"method": json.dumps(method | {"rnak": 3})}, "method.rnak: LoRA has no such field; did you mean 'rank'"),
        ({"method": json.dumps({"class": "jaxnlp.peft.lora:LoAR"})}, "cannot be imported"),
        ({"method": json.dumps({"class": "jaxnlp.models.gpt:GPTConfig"})}, "its method is a GPTConfig; expected one"),
        ({"method": "{"}, "x.safetensors: Expecting"),
        ({"tensors": ["block_0/attention/query/lora_a"]}, "damaged: its tensors do not match the fingerprint"),
    ):
        path.write_bytes(whole)
        edited(path, **changes)
        with pytest.raises(UserError, match=message):
            read(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="not a safetensors file, or cut short"):
        read(path)


def test_a_write_that_ends_early_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    module, inputs, base = model("gpt")
    _, tuned = written(path)

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match="cannot be written .No space left on device.; existing files are unchanged"
        ):
            written(path, method=ALL["prompt"])
    _, loaded = load(path, base, module, *inputs)
    jax.tree.map(np.testing.assert_array_equal, loaded, tuned)
    assert os.listdir(tmp_path) == ["x.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        written(tmp_path / "file" / "x.safetensors")
