"""Hugging Face PEFT adapters, imported and exported: the same logits, live and merged."""

import copy
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.interop.adapters import load_adapter, save_adapter, stacked
from jaxnlp.interop.huggingface import load
from jaxnlp.interop.tensor_files import read_tensors, write_tensors
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.tuning import attach
from jaxnlp.sharding.functional import make_apply
from jaxnlp.trees import merge

from ..reference import torch
from .families import build
from .test_huggingface import close, inputs, outputs_of_theirs

peft = pytest.importorskip("peft", reason="adapter parity needs peft (make test installs it on Python 3.11)")

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert-masked": ["query", "key", "value", "dense"],
    "llama": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "roberta": ["query", "key", "value", "dense"],
    "t5": ["q", "k", "v", "o", "wi", "wo"],
    "t5-1.1": ["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"],
}
SCALED = {  # modules that (IA)^3 scales: outputs, and the inputs of these
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "bert-masked": (["key", "value", "output.dense"], ["output.dense"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "qwen2": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "qwen3": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "roberta": (["key", "value", "output.dense"], ["output.dense"]),
    "t5": (["k", "v", "wo"], ["wo"]),
    "t5-1.1": (["k", "v", "wo"], ["wo"]),
}


def lora(name, **changes):
    # BERT's prediction head also has a module "dense".
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": TARGETS[name], **changes})


KINDS = {
    "lora": lora,
    "rslora": lambda name: lora(name, use_rslora=True, r=3),
    "dora": lambda name: lora(name, use_dora=True),
    "ia3": lambda name: peft.IA3Config(target_modules=SCALED[name][0], feedforward_modules=SCALED[name][1]),
}


def random_adapter(model, config):
    """The model with an adapter without zeros or ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name or "ia3_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return adapted.eval()


def wanted_of(model, theirs):
    with torch.no_grad():
        return outputs_of_theirs(model, theirs)[0]["masked_lm"].numpy()


def logits(out):
    return out["masked_lm"] if isinstance(out, dict) else out


# Kinds depend on models only by the layout of their matrices, so each kind and each model occurs at least once.
FAST = {("lora", "llama"), ("rslora", "gpt2"), ("ia3", "gpt2")}
COVERING = {*(("lora", name) for name in TARGETS), *((kind, "gpt2") for kind in KINDS), ("dora", "llama")}
COVERING |= {
    ("ia3", "bert-masked"),
    ("ia3", "llama"),
    ("ia3", "t5-1.1"),
    ("ia3", "t5"),
    ("dora", "t5"),
    ("dora", "bert-masked"),
}


def marks(kind, name):
    return () if (kind, name) in FAST else pytest.mark.slow if (kind, name) in COVERING else pytest.mark.full


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(kind, name, marks=marks(kind, name)) for kind in KINDS for name in TARGETS],
)
def test_logits_equal_peft_live_and_merged_and_it_reads_what_we_write(kind, name, rng, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "model")
    adapted = random_adapter(model, KINDS[kind](name))
    adapted.save_pretrained(tmp_path / "theirs")
    config, base, _ = load(tmp_path / "model")
    theirs, (args, kwargs), real = inputs(config, rng)
    wanted = wanted_of(adapted, theirs)
    method, tuned = load_adapter(tmp_path / "theirs", config, base)
    tuning = attach(method, config.build(), *config.example_inputs(1, 2))
    run = jax.jit(tuning.apply(make_apply(config.build())))
    close(logits(run(merge(base, tuned), *args, **kwargs))[real], wanted[real])
    close(logits(run(tuning.merge(base, tuned), *args, **kwargs))[real], wanted[real])

    save_adapter(tmp_path / "ours", config, tuning, tuned)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    np.testing.assert_allclose(wanted_of(again, theirs)[real], wanted[real], rtol=1e-4, atol=1e-5)


PROMPTS = {
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3),
    "p-tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=3, encoder_hidden_size=5),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3),
    "prefix of a network": lambda task: peft.PrefixTuningConfig(
        task_type=task, num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5
    ),
}


FAST_PROMPTS = {("prompt", "gpt2"), ("p-tuning", "bert-bare"), ("prefix of a network", "llama")}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if (kind, name) in FAST_PROMPTS else pytest.mark.slow)
        for kind in PROMPTS
        for name in ("gpt2", "llama", "bert-bare")
    ],
)
def test_prompts_and_prefixes_equal_peft_and_it_reads_what_we_write(name, kind, rng, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "model")
    task = "FEATURE_EXTRACTION" if name == "bert-bare" else "CAUSAL_LM"
    adapted = peft.get_peft_model(copy.deepcopy(model), PROMPTS[kind](task)).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    config, base, _ = load(tmp_path / "model")
    ids = rng.integers(3, 37, (3, 11))
    prompt = "prefix" not in kind  # PEFT returns the prompt's positions too
    fields = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones(3, 11, dtype=torch.long)}

    def wanted_of(adapted):
        with torch.no_grad():
            out = adapted(**fields)
        return (out["last_hidden_state"] if name == "bert-bare" else out["logits"]).numpy()[:, 3 if prompt else 0 :]

    wanted = wanted_of(adapted)
    method, tuned = load_adapter(tmp_path / "theirs", config)
    tuning = attach(method, config.build(), *config.example_inputs(1, 2))
    out = tuning.apply(make_apply(config.build()))(merge(base, tuned), ids)
    close(out["hidden"] if name == "bert-bare" else out, wanted)
    save_adapter(tmp_path / "ours", config, tuning, tuned, task_type=task)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    np.testing.assert_allclose(wanted_of(again), wanted, rtol=1e-4, atol=1e-5)


SUBMODULES = {"prompt": 1, "prompt of both": 2, "p-tuning": 1, "p-tuning of both": 2}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k == "prompt of both" else pytest.mark.slow) for k in SUBMODULES]
)
def test_prompts_of_an_encoder_decoder_equal_peft_and_it_reads_what_we_write(kind, rng, tmp_path):
    """PEFT's default has a second prompt, which its forward pass does not read."""
    model, task = build("t5"), "SEQ_2_SEQ_LM"
    model.save_pretrained(tmp_path / "model")
    settings = PROMPTS[kind.removesuffix(" of both")](task)
    settings.num_transformer_submodules = SUBMODULES[kind]
    adapted = peft.get_peft_model(copy.deepcopy(model), settings).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    config, base, _ = load(tmp_path / "model")
    theirs, (args, kwargs), _ = inputs(config, rng)
    fields = {name: torch.from_numpy(x) for name, x in theirs.items()}

    def wanted_of(adapted):
        with torch.no_grad():
            return adapted(**fields).logits.numpy()

    wanted = wanted_of(adapted)
    method, tuned = load_adapter(tmp_path / "theirs", config)
    tuning = attach(method, config.build(), *config.example_inputs(1, 2))
    run = jax.jit(tuning.apply(make_apply(config.build())))
    close(run(merge(base, tuned), *args, **kwargs), wanted)
    assert np.abs(run(base, *args, **kwargs) - wanted).max() > 1e-2 * np.abs(wanted).max()
    save_adapter(tmp_path / "ours", config, tuning, tuned, task_type=task)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    np.testing.assert_allclose(wanted_of(again), wanted, rtol=1e-4, atol=1e-5)


def test_prefixes_of_an_encoder_decoder_are_refused(tmp_path):
    model = build("t5")
    model.save_pretrained(tmp_path / "model")
    adapted = peft.get_peft_model(copy.deepcopy(model), PROMPTS["prefix"]("SEQ_2_SEQ_LM"))
    adapted.save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="PREFIX_TUNING is not supported for encoder-decoders"):
        load_adapter(tmp_path / "theirs", load(tmp_path / "model")[0])


@pytest.mark.parametrize("use_rslora", [False, True])
def test_parts_of_one_matrix_of_theirs_are_written_as_one_update(use_rslora, rng, tmp_path):
    """Our adapter has one A each for query, key and value; PEFT's has one for all three."""
    model = build("gpt2")
    model.save_pretrained(tmp_path / "model")
    config, base, _ = load(tmp_path / "model")
    theirs, (args, kwargs), real = inputs(config, rng)
    method = LoRA(targets=("query", "value", "up"), rank=2, use_rslora=use_rslora)
    tuning = attach(method, config.build(), *config.example_inputs(1, 2))
    draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)
    tuned = jax.tree.map(draw, tuning.init(jax.random.key(0), base))
    wanted = tuning.apply(make_apply(config.build()))(merge(base, tuned), *args, **kwargs)
    save_adapter(tmp_path / "ours", config, tuning, tuned)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    close(wanted_of(again, theirs)[real], np.asarray(wanted)[real])
    back, read = load_adapter(tmp_path / "ours", config)
    whole = attach(back, config.build(), *config.example_inputs(1, 2))
    actual = whole.apply(make_apply(config.build()))(merge(base, read), *args, **kwargs)
    close(np.asarray(actual)[real], np.asarray(wanted)[real])


def test_embeddings_and_scanned_layers(rng, tmp_path):
    model = build("gpt2-untied")
    model.save_pretrained(tmp_path / "model")
    adapted = random_adapter(model, lora("gpt2", target_modules=["wte", "c_attn", "lm_head"]))
    adapted.save_pretrained(tmp_path / "theirs")
    config, base, _ = load(tmp_path / "model")
    theirs, (args, kwargs), real = inputs(config, rng)
    scanned = dataclasses.replace(config, scan_layers=True)
    with pytest.raises(UserError, match="is a copy of a base parameter; pass base="):
        load_adapter(tmp_path / "theirs", scanned)
    with pytest.raises(UserError, match="differs from the base parameter"):
        load_adapter(tmp_path / "theirs", scanned, jax.tree.map(lambda x: x + 1, base))
    method, tuned = load_adapter(tmp_path / "theirs", scanned, base)
    tuning = attach(method, scanned.build(), *scanned.example_inputs(1, 2))
    params = merge(stacked(base), tuned)
    actual = tuning.apply(make_apply(scanned.build()))(params, *args, **kwargs)
    close(actual[real], wanted_of(adapted, theirs)[real])
    save_adapter(tmp_path / "ours", scanned, tuning, tuned)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "ours").eval()
    np.testing.assert_allclose(wanted_of(again, theirs)[real], wanted_of(adapted, theirs)[real], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_encoder_and_a_decoder_of_other_depths_with_scanned_layers(rng, tmp_path):
    model = build("t5-1.1")  # one layer, and three
    model.save_pretrained(tmp_path / "model")
    random_adapter(model, lora("t5-1.1", target_modules=["q", "wo"])).save_pretrained(tmp_path / "theirs")
    config, base, _ = load(tmp_path / "model")
    scanned = dataclasses.replace(config, scan_layers=True)
    method, tuned = load_adapter(tmp_path / "theirs", scanned)
    _, apart = load_adapter(tmp_path / "theirs", config)
    _, (args, kwargs), _ = inputs(config, rng)
    outs = []
    for c, params, leaves in ((config, base, apart), (scanned, stacked(base), tuned)):
        tuning = attach(method, c.build(), *c.example_inputs(1, 2))
        run = jax.jit(tuning.apply(make_apply(c.build())))
        outs.append(run(merge(params, leaves), *args, **kwargs))
    close(outs[1], outs[0])
    tensors = read_tensors(tmp_path / "theirs" / "adapter_model.safetensors")
    remaining = {name: x for name, x in tensors.items() if "decoder.block.1.layer.0.SelfAttention.q" not in name}
    write_tensors(remaining, tmp_path / "theirs" / "adapter_model.safetensors")
    with pytest.raises(UserError, match="the adapted modules differ between layers"):
        load_adapter(tmp_path / "theirs", scanned)
