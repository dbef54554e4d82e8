"""A config.json without a field means what transformers takes it to mean."""

import json
import pathlib

import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.interop import huggingface
from jaxnlp.interop.config_defaults import DEFAULTS, OTHER_NAMES
from jaxnlp.interop.config_file import model_config
from jaxnlp.interop.huggingface import load, read_config
from jaxnlp.sharding.functional import make_apply

from ..reference import torch, transformers

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_are_those_of_transformers_config_class(kind):
    theirs = transformers.AutoConfig.for_model(kind).to_dict()
    assert {name: theirs[name] for name in DEFAULTS[kind]} == dict(DEFAULTS[kind])
    assert OTHER_NAMES.get(kind, {}) == transformers.AutoConfig.for_model(kind).attribute_map


CASES = {
    "mistral": ({"num_attention_heads": 2, "num_key_value_heads": 2}, ["sliding_window"], 4150),
    "mistral-heads": ({"num_attention_heads": 16, "head_dim": 4}, ["num_key_value_heads"], 8),
    "qwen3": ({"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128}, ["head_dim"], 8),
    "qwen3-heads": ({"num_attention_heads": 64, "head_dim": 4}, ["num_key_value_heads"], 8),
    "llama": ({"num_attention_heads": 2}, ["rms_norm_eps", "rope_parameters", "num_key_value_heads", "hidden_act"], 8),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_without_fields_equal_transformers(name, rng, tmp_path):
    fields, missing, length = CASES[name]
    config = transformers.AutoConfig.for_model(name.partition("-")[0], **SMALL, **fields)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in saved.items() if k not in missing}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = rng.integers(0, 40, (1, length))
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids)).logits[0, -4:].numpy()
    config, params, _ = load(tmp_path)
    logits = np.asarray(make_apply(config.build())(params, ids))[0, -4:]
    assert np.abs(logits - wanted).max() < 2e-5 * np.abs(wanted).max()


def test_other_names_of_fields_are_read(tmp_path):
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=40)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    wanted, _ = read_config(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for other, name in OTHER_NAMES["gpt2"].items():
        saved[other] = saved.pop(name)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert read_config(tmp_path)[0] == wanted


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("llama", {"hidden_size": None}, "hidden_size=None: expected int"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: the checkpoint has only 1 tensors"),
        ("llama", {"rope_theta": "x"}, "rope_theta='x': expected float"),
        ("llama", {"rope_parameters": "linear"}, "rope_parameters='linear': expected what"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": None}}, "rope_parameters.factor=None: expect"),
        ("llama", {"rope_parameters": {"rope_theta": None}, "pad_token_id": None}, "rope_parameters.rope_theta=None"),
        ("llama", {"hidden_act": ["silu"]}, "hidden_act=.*silu.*: expected what"),
        ("llama", {"vocab_size": None}, "vocab_size=None: expected a positive number"),
        ("gpt2", {"n_positions": None, "resid_pdrop": 0.1}, "n_positions=None: expected int"),
        ("roberta", {"max_position_embeddings": None}, "max_position_embeddings=None: expected what"),
        ("t5", {"feed_forward_proj": ["x"]}, "feed_forward_proj=.*: expected what"),
    ],
)
def test_the_message_names_the_field_of_config_json(kind, fields, message):
    family = next(family for family in huggingface.FAMILIES if kind in family.MODEL_TYPES)
    layers = {"t5": "num_layers", "gpt2": "n_layer"}.get(kind, "num_hidden_layers")
    hf = {"model_type": kind, layers: 1, **fields}
    with pytest.raises(UserError, match=f"^config.json: {message}"):
        model_config(pathlib.Path("config.json"), hf, family, ["a"])
