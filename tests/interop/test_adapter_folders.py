"""PEFT adapter folders: patterns, adapters in some layers, heads; and what is rejected."""

import copy
import dataclasses
import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.interop.adapters import body_alone, load_adapter, save_adapter, task_type
from jaxnlp.interop.huggingface import load
from jaxnlp.interop.module_names import modules_of
from jaxnlp.interop.tensor_files import read_tensors, write_tensors
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import ModelWithHead, SequenceClassificationHead
from jaxnlp.nn import positions
from jaxnlp.peft.adapter import Adapter
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.prompt import PTuning
from jaxnlp.peft.tuning import attach
from jaxnlp.sharding.functional import make_apply
from jaxnlp.trees import merge

from ..reference import torch
from .families import build
from .test_adapters import PROMPTS, logits, lora, random_adapter, wanted_of
from .test_huggingface import close, inputs

peft = pytest.importorskip("peft", reason="adapter parity needs peft (make test installs it on Python 3.11)")


def edited(folder, **changes):
    """Changes fields of adapter_config.json; `...` removes a field."""
    path = folder / "adapter_config.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "VERA"}, "peft_type='VERA' is not supported; expected one of LORA, IA3"),
        ({"bias": "all"}, "bias='all' is not supported; expected 'none'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"r": 3}, r"shapes \(2, 12\) and \(36, 2\); expected \(3, 12\) and \(36, 3\) for rank 3"),
        ({"rank_pattern": {"c_attn": 4}}, r"expected \(4, 12\) and \(36, 4\) for rank 4"),
        ({"r": ...}, "adapter_config.json: field r is missing; expected a positive integer"),
        ({"r": 0}, "r=0; expected a positive integer"),
        ({"r": "2"}, "r='2'; expected a positive integer"),
        ({"r": True}, "r=True; expected a positive integer"),
        ({"lora_alpha": ...}, "field lora_alpha is missing; expected a positive number"),
        ({"lora_alpha": None}, "lora_alpha=None; expected a positive number"),
        ({"lora_dropout": "0.1"}, "lora_dropout='0.1'; expected a probability"),
        ({"alpha_pattern": {"c_attn": "4"}}, r"alpha_pattern\['c_attn'\]='4'; expected a positive number"),
        ({"alpha_pattern": {"c_attn[": 4}}, r"alpha_pattern has the key 'c_attn\[', which is not a valid regular"),
        ({"alpha_pattern": [4]}, r"alpha_pattern=\[4\]; expected an object that maps patterns to"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported; .* convert it to plain LoRA"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq' is not supported"),
        ({"lora_thing_of_tomorrow": True}, "lora_thing_of_tomorrow=True is not supported"),
        ({"use_dora": True}, "c_attn has tensors lora_A, lora_B; expected lora_A, lora_B, lora_magnitude_vector"),
        ({"peft_type": "IA3"}, "c_attn has tensors lora_A, lora_B; expected ia3_l for peft_type='IA3'"),
        ({"peft_type": "PROMPT_TUNING"}, r"tensors .*expected only prompt_embeddings"),
    ],
)
def test_adapters_that_cannot_be_read(changes, message, broken):
    folder, config = broken
    edited(folder, **changes)
    with pytest.raises(UserError, match=message):
        load_adapter(folder, config)


@pytest.fixture(scope="module")
def gpt2_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    model = build("gpt2")
    model.save_pretrained(folder / "model")
    random_adapter(model, lora("gpt2")).save_pretrained(folder / "theirs")
    return model, folder


@pytest.fixture
def broken(gpt2_adapter, tmp_path):
    """(a folder with an adapter that a test may corrupt, the config of its model)."""
    folder = gpt2_adapter[1]
    return shutil.copytree(folder / "theirs", tmp_path / "theirs"), load(folder / "model")[0]


def test_a_prompt_without_its_length(tmp_path):
    model = build("gpt2")
    model.save_pretrained(tmp_path / "model")
    peft.get_peft_model(model, PROMPTS["prompt"]("CAUSAL_LM")).save_pretrained(tmp_path / "theirs")
    edited(tmp_path / "theirs", num_virtual_tokens=...)
    with pytest.raises(UserError, match="adapter_config.json: field num_virtual_tokens is missing; expected a pos"):
        load_adapter(tmp_path / "theirs", load(tmp_path / "model")[0])


PATTERNS = {
    "any path": {"alpha_pattern": {r".*\.c_attn": 30}, "init_lora_weights": "eva"},
    "a layer": {"alpha_pattern": {r"h\.0\.attn\.c_attn": 30}, "init_lora_weights": "gaussian"},
    "from the start": {"alpha_pattern": {"^transformer.h.0.attn.c_attn": 30}, "init_lora_weights": "orthogonal"},
    "the first of two": {"alpha_pattern": {r"h\.1\..*": 7, "c_attn": 30}, "use_rslora": True},
    "half a name": {"alpha_pattern": {"attn": 30}},
}


@pytest.mark.parametrize("case", PATTERNS)
def test_patterns_of_alpha_and_kinds_of_init_mean_what_they_do_in_peft(case, gpt2_adapter, broken, rng):
    model, home = gpt2_adapter
    folder, _ = broken
    edited(folder, **PATTERNS[case])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    assert_same_logits(adapted, folder, home / "model", rng)


@pytest.mark.parametrize("some", ["a module", "layers_to_transform", "tensors that are missing"])
def test_adapters_of_some_layers_alone(some, gpt2_adapter, broken, rng):
    """Only for an unrolled model; scanned layers all have the same adapter."""
    model, home = gpt2_adapter
    folder, config = broken
    if some == "tensors that are missing":
        tensors = read_tensors(folder / "adapter_model.safetensors")
        remaining = {name: x for name, x in tensors.items() if "h.0.attn.c_attn" not in name}
        write_tensors(remaining, folder / "adapter_model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    else:
        only = {
            "a module": {"target_modules": ["h.1.attn.c_attn"]},
            "layers_to_transform": {"layers_to_transform": [1]},
        }
        adapted = random_adapter(model, lora("gpt2", **only[some]))
        adapted.save_pretrained(folder)
    assert_same_logits(adapted, folder, home / "model", rng)
    lacking = (
        r"differ between layers, .*: block_1/attention/query is adapted, block_0/attention/query is not; load it with"
    )
    with pytest.raises(UserError, match=lacking):
        load_adapter(folder, dataclasses.replace(config, scan_layers=True))


@pytest.mark.parametrize(
    "method",
    [LoRA(targets=("block_0/attention/query",), rank=2), IA3(outputs=("block_1/*/value",), inputs=("block_0/*/down",))],
    ids=["lora", "ia3"],
)
def test_what_we_write_of_some_layers_alone_is_read(method, gpt2_adapter, rng, tmp_path):
    model, home = gpt2_adapter
    config, base, _ = load(home / "model")
    tuning = attach(method, config.build(), *config.example_inputs(1, 2))
    draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)
    save_adapter(tmp_path, config, tuning, jax.tree.map(draw, tuning.init(jax.random.key(0), base)))
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    assert_same_logits(adapted, tmp_path, home / "model", rng)


def assert_same_logits(adapted, folder, home, rng):
    """PEFT's logits equal ours, with the base of `home` and the adapter of `folder`."""
    config, base, _ = load(home)
    theirs, (args, kwargs), real = inputs(config, rng)
    method, tuned = load_adapter(folder, config, base)
    tuning = attach(method, config.build(), *config.example_inputs(1, 2))
    run = jax.jit(tuning.apply(make_apply(config.build())))
    close(logits(run(merge(base, tuned), *args, **kwargs))[real], wanted_of(adapted, theirs)[real])


def test_other_adapters_that_cannot_be_read_or_written(tmp_path):
    model = build("gpt2")
    model.save_pretrained(tmp_path / "model")
    config, base, _ = load(tmp_path / "model")
    with pytest.raises(UserError, match="adapter_config.json: cannot be read"):
        load_adapter(tmp_path, config)
    random_adapter(model, lora("gpt2")).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"has low-rank matrices of shapes .*; expected"):
        load_adapter(tmp_path / "theirs", dataclasses.replace(config, mlp_dim=13))
    with pytest.raises(UserError, match=r"tensor .*h\.1.* matches no module of this model"):
        load_adapter(tmp_path / "theirs", dataclasses.replace(config, num_layers=1))
    (tmp_path / "theirs" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors: no such file"):
        load_adapter(tmp_path / "theirs", config)
    tied = attach(LoRA(targets=("embed",), rank=2), config.build(), *config.example_inputs(1, 2))
    with pytest.raises(UserError, match="also adapts the tied output map, and PEFT adapts only"):
        save_adapter(tmp_path / "x", config, tied, tied.init(jax.random.key(0), base))
    other = attach(Adapter(bottleneck=2), config.build(), *config.example_inputs(1, 2))
    with pytest.raises(UserError, match=r"Adapter\(\): PEFT has no equivalent"):
        save_adapter(tmp_path / "x", config, other, other.init(jax.random.key(0), base))
    whole = attach(LoRA(rank=2, modules_to_save=("norm/*",)), config.build(), *config.example_inputs(1, 2))
    with pytest.raises(UserError, match="the fully trained parameters norm"):
        save_adapter(tmp_path / "x", config, whole, whole.init(jax.random.key(0), base))


TINY = {"vocab_size": 37, "num_layers": 1, "num_heads": 2, "embed_dim": 8, "max_length": 8}


def headed(method, rng, trunk, base):
    """(config, tuning, params, tuned) of a model with a head; all tuned parameters differ from their initial values."""
    config = ModelWithHead(body=trunk, head=SequenceClassificationHead(num_classes=3))
    tuning = attach(method, config.build(), *config.example_inputs(1, 2), head=("head/*",))
    draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)
    params = {**jax.tree.map(draw, {"head": tuning.shapes["head"]}), "trunk": base}
    return config, tuning, params, jax.tree.map(draw, tuning.init(jax.random.key(0), params))


def test_of_a_model_with_a_head_the_trunks_adapter_is_written(rng, tmp_path):
    model = build("bert-bare")
    model.save_pretrained(tmp_path / "model")
    trunk, base, _ = load(tmp_path / "model")
    config, tuning, params, tuned = headed(LoRA(targets=("query", "down"), rank=2), rng, trunk, base)
    *body, left = body_alone(config, tuning, tuned)
    assert left == ["head/bias", "head/kernel"] and task_type(body[0]) == "FEATURE_EXTRACTION"
    save_adapter(tmp_path / "ours", *body)
    adapted = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    ids = rng.integers(3, 37, (2, 9))
    with torch.no_grad():
        pooled = adapted(input_ids=torch.from_numpy(ids)).pooler_output.numpy()
    params = merge(params, tuned)
    logits = jax.jit(tuning.apply(make_apply(config.build())))(params, ids[:, None])["logits"]
    close(logits, pooled @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"]))


def test_of_a_model_with_a_head_and_an_encoder_of_prompts_the_vectors_are_written(rng, tmp_path):
    trunk = BertConfig(**TINY, heads=("pooler",))
    config, tuning, _, tuned = headed(PTuning(length=3, hidden_dim=5), rng, trunk, {})
    *body, left = body_alone(config, tuning, tuned)
    assert left == ["head/bias", "head/kernel"]
    save_adapter(tmp_path, *body)
    _, read = load_adapter(tmp_path, trunk)
    np.testing.assert_array_equal(read["embed"]["prompt"], tuning.expanded(tuned)["trunk"]["embed"]["prompt"])


def test_what_else_is_trained_whole_is_refused(rng, tmp_path):
    method = LoRA(rank=2, modules_to_save=("head/*", "trunk/embed_norm/*"))
    config, tuning, _, tuned = headed(
        method, rng, BertConfig(**TINY, heads=()), {"embed_norm": {"bias": jnp.zeros(8), "scale": jnp.zeros(8)}}
    )
    *body, left = body_alone(config, tuning, tuned)
    assert left == ["head/bias", "head/kernel"]
    message = r"fully trained parameters embed_norm/bias, embed_norm/scale cannot .* jaxnlp.peft.files.save"
    with pytest.raises(UserError, match=message):
        save_adapter(tmp_path, *body)


def test_a_model_that_transformers_has_not_is_told_by_its_field():
    with pytest.raises(
        UserError, match=r"no class for this model, because of positions=Rotary\(base=100.0, scaling=None\)"
    ):
        modules_of(GPTConfig(**TINY, positions=positions.Rotary(base=100.0)))
