"""Names of tensors that transformers accepts: each spelling of a checkpoint gives the same parameters."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxnlp
from jaxnlp.errors import UserError
from jaxnlp.interop.adapters import load_adapter
from jaxnlp.interop.huggingface import load
from jaxnlp.training.init.pretrained import open_source

from ..reference import torch
from .families import build

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DECODER = "cls.predictions.decoder"


def old_norms(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def renamed(change):
    return lambda arrays: {change(name): x for name, x in arrays.items()}


def stored_as(old, *new):
    """One tensor under other names alone."""
    return lambda arrays: {name: x for name, x in arrays.items() if name != old} | dict.fromkeys(new, arrays[old])


def with_prefix(prefix):
    return renamed(lambda name: name if name.startswith(("lm_head", "cls")) else prefix + name)


def without(prefix, only=""):
    return renamed(lambda name: name.removeprefix(prefix) if only in name else name)


def added(**extra):
    return lambda arrays: arrays | {name.replace("__", "."): x for name, x in extra.items()}


MASK = np.ones((1, 1, 24, 24), np.float32)
IDS = np.arange(24)[None]
FREQUENCIES = np.ones(2, np.float32)
WORDS = "bert.embeddings.word_embeddings.weight"
SPELLINGS = {
    "gamma and beta": ("bert", renamed(old_norms)),
    "gamma and beta without prefix": ("bert-bare", renamed(old_norms)),
    "gamma and beta, RoBERTa": ("roberta", renamed(old_norms)),
    "some without prefix": ("bert", without("bert.", only="layer.1")),
    "prefix before a bare model": ("bert-bare", with_prefix("bert.")),
    "the output map alone": ("bert", stored_as(WORDS, f"{DECODER}.weight")),
    "the decoder's bias alone": ("bert", stored_as("cls.predictions.bias", f"{DECODER}.bias")),
    "RoBERTa's output map alone": ("roberta", stored_as(WORDS.replace("bert", "roberta", 1), "lm_head.decoder.weight")),
    "RoBERTa's other bias alone": ("roberta", stored_as("lm_head.bias", "lm_head.decoder.bias")),
    "positions": ("bert", added(bert__embeddings__position_ids=IDS)),
    "GPT-2 without prefix": ("gpt2", without("transformer.")),
    "GPT-2's masks": ("gpt2", added(h__0__attn__bias=MASK, transformer__h__1__attn__bias=MASK)),
    "GPT-2's output map alone": ("gpt2", stored_as("transformer.wte.weight", "lm_head.weight")),
    "Llama without prefix": ("llama", without("model.")),
    "frequencies": ("llama", added(model__layers__0__self_attn__rotary_emb__inv_freq=FREQUENCIES)),
    "a tied output map alone": ("qwen2", stored_as("model.embed_tokens.weight", "lm_head.weight")),
    "T5's decoder's table alone": ("t5", stored_as("shared.weight", "decoder.embed_tokens.weight")),
    "T5's tables": ("t5", stored_as("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")),
    "T5's output map alone": ("t5", stored_as("shared.weight", "lm_head.weight")),
    "T5 with prefix": ("t5", with_prefix("transformer.")),
    "T5 1.1, encoder's table": ("t5-1.1", stored_as("shared.weight", "encoder.embed_tokens.weight")),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(model of transformers, its folder, its tensors) by the name of a case of `families`."""
    cache = {}

    def get(name):
        if name not in cache:
            folder = tmp_path_factory.mktemp("saved")
            model = build(name)
            model.save_pretrained(folder)
            cache[name] = (model, folder, safetensors.numpy.load_file(folder / SINGLE))
        return cache[name]

    return get


def write(folder, arrays, like):
    shutil.copy(like / "config.json", folder)
    safetensors.numpy.save_file(arrays, folder / SINGLE, metadata={"format": "pt"})


def same(actual, wanted):
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_that_transformers_accepts_gives_the_same_parameters(spelling, saved, tmp_path):
    name, change = SPELLINGS[spelling]
    model, folder, arrays = saved(name)
    changed = change(arrays)
    assert set(changed) != set(arrays)
    write(tmp_path, changed, folder)
    theirs, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, x in model.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], x), key
    same(load(tmp_path)[:2], load(folder)[:2])


def test_shards_with_older_names_and_an_index_that_lists_a_copy_that_no_file_has(saved, tmp_path):
    model, folder, arrays = saved("bert")
    old = renamed(old_norms)(arrays)
    shutil.copy(folder / "config.json", tmp_path)
    weight_map = {name: f"part-{i % 3}.safetensors" for i, name in enumerate(sorted(old))}
    for file in set(weight_map.values()):
        safetensors.numpy.save_file({name: old[name] for name in old if weight_map[name] == file}, tmp_path / file)
    weight_map |= {f"{DECODER}.weight": "part-0.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    same(load(tmp_path)[:2], load(folder)[:2])
    theirs = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(theirs.state_dict()[name], x) for name, x in model.state_dict().items())

    write(tmp_path, renamed(old_norms)({**arrays, "cls.predictions.bias": arrays["cls.predictions.bias"] + 1}), folder)
    wanted = type(model).from_pretrained(tmp_path).cls.predictions.bias  # of the single file, whatever the index says
    np.testing.assert_array_equal(load(tmp_path)[1]["masked_lm"]["bias"], wanted.detach().numpy())
    (tmp_path / SINGLE).unlink()
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match=r"part-1\.safetensors: no such file; .*index\.json names it"):
        load(tmp_path)
    for bad in ([], {"a": 3}, None):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(UserError, match=r"index\.json: weight_map=.*: expected an object"):
            load(tmp_path)


def test_two_names_of_one_parameter_are_an_error(saved, tmp_path):
    _, folder, arrays = saved("bert")
    norm = "bert.embeddings.LayerNorm.weight"
    write(tmp_path, {**arrays, old_norms(norm): arrays[norm] + 1}, folder)
    with pytest.raises(UserError, match=r"gamma and bert\..*\.weight are the same parameter; skip one with ignore="):
        load(tmp_path)
    same(load(tmp_path, ignore=["*.gamma"])[:2], load(folder)[:2])
    write(
        tmp_path,
        {name: x for name, x in renamed(old_norms)(arrays).items() if "layer.1.output.Lay" not in name},
        folder,
    )
    with pytest.raises(UserError, match=r"tensor bert\.encoder\.layer\.1\.output\.LayerNorm\.weight \(and 1 more\) is"):
        load(tmp_path)


PICKLE = r"{} is a pickle, which is not supported: convert it with save_pretrained of {}"
FILES = {
    "pytorch_model.bin": PICKLE.format(r"pytorch_model\.bin", "transformers"),
    "pytorch_model.bin.index.json": PICKLE.format(r"pytorch_model\.bin\.index\.json", "transformers"),
    "consolidated.00.pth": PICKLE.format(r"consolidated\.00\.pth", "transformers"),
    "tf_model.h5": r"tf_model\.h5 is TensorFlow weights, which is not supported",
    "flax_model.msgpack": r"flax_model\.msgpack is Flax weights, which is not supported",
    "model.Q4_1.gguf": r"model\.Q4_1\.gguf is a GGUF file, which is not supported",
}


@pytest.mark.parametrize("file", FILES)
def test_weights_in_another_format_are_named_with_what_to_do(file, saved, tmp_path):
    for other in ("training_args.bin", "optimizer.pt", file):  # the first two hold no weights
        (tmp_path / other).write_bytes(b"x")
    with pytest.raises(UserError, match=r"config\.json: cannot be read \(No such file.*; " + FILES[file]):
        load(tmp_path)
    for opened in (jaxnlp.load, lambda path: open_source(str(path), "latest", print)):
        with pytest.raises(UserError, match=r"has neither a checkpoint .* Hugging Face's layout; " + FILES[file]):
            opened(tmp_path)
    shutil.copy(saved("gpt2")[1] / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"neither model\.safetensors nor .* exists; " + FILES[file]):
        load(tmp_path)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path / file))}: not a folder"):
        load(tmp_path / file)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor \S* exists$"):
        load(tmp_path)


@pytest.mark.parametrize("fields", [{}, {"adapter_config.json": json.dumps({"peft_type": "LORA", "r": 2})}])
def test_an_adapter_that_is_a_pickle_is_named_with_what_to_do(fields, saved, tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    for name, text in fields.items():
        (tmp_path / name).write_text(text)
    config = load(saved("gpt2")[1])[0]
    with pytest.raises(UserError, match=PICKLE.format(r"adapter_model\.bin", "PEFT")):
        load_adapter(tmp_path, config)
