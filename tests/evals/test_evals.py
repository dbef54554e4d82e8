"""Evaluation is exact under padding; baselines equal their definitions."""

import lzma
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.baselines import compressed_bits_per_byte, unigram_bits_per_byte
from jaxnlp.data.pipeline import DataConfig, eval_batches
from jaxnlp.data.text.store import build_store
from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.evals.loss import evaluate, make_eval_step
from jaxnlp.objectives.causal_lm import CausalLM

TEXTS = ["abracadabra" * 3, "the quick brown fox", "naïve 中文"]


@pytest.fixture
def store(tmp_path):
    return build_store(tmp_path / "store", TEXTS, ByteTokenizer(), split="validation", source_fingerprint="test")


def bigram(params, tokens, segment_ids=None, positions=None, key=None):
    """A model whose logits depend only on the current token, so that windows do not change the result."""
    return params[tokens]


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("seq_len", [4, 16, 100])
def test_the_loss_is_that_of_every_token_once(store, batch_size, seq_len, rng):
    params = jnp.asarray(rng.standard_normal((257, 257)), jnp.float32)
    row = store.read(0, len(store))
    log_p = np.asarray(jax.nn.log_softmax(params.astype(jnp.float32)), np.float64)
    nll = -log_p[row[:-1], row[1:]].sum()
    config = DataConfig(seq_len=seq_len, batch_size=batch_size)
    step = jax.jit(make_eval_step(bigram, CausalLM(z_loss=0.1)))
    metrics = evaluate(step, params, eval_batches(store, config), CausalLM(), store.bytes_per_token)
    assert metrics["tokens"] == len(row) - 1
    assert metrics["loss"] == pytest.approx(nll / (len(row) - 1), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["bits_per_byte"] == pytest.approx(nll / math.log(2) / sum(len(t.encode()) for t in TEXTS), rel=1e-6)


def test_unigram_entropy_is_the_best_loss_of_a_model_without_context(store):
    row = store.read(1, len(store))
    counts = np.bincount(row, minlength=257)
    params = jnp.broadcast_to(jnp.log(counts / counts.sum()), (257, 257))
    step = jax.jit(make_eval_step(bigram, CausalLM()))
    batches = eval_batches(store, DataConfig(seq_len=8, batch_size=2))
    metrics = evaluate(step, params, batches, CausalLM(), store.bytes_per_token)
    assert unigram_bits_per_byte(store) == pytest.approx(metrics["bits_per_byte"], rel=1e-5)


def test_compressors_see_the_text_of_the_split(store):
    text = "".join(TEXTS).encode()
    wanted = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    assert compressed_bits_per_byte(store, ByteTokenizer())["xz"] == pytest.approx(wanted)
