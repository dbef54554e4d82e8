"""BERT's objective is the sum of two means, independent of microbatches, and equals transformers' loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp.errors import UserError
from jaxnlp.models.bert import BertConfig
from jaxnlp.objectives.masked_lm import MaskedLM
from jaxnlp.objectives.objective import means
from jaxnlp.sharding.functional import init_params, make_apply
from jaxnlp.training.step.state import new_state
from jaxnlp.training.step.step import make_step

B, T, M, V = 8, 12, 3, 31


@pytest.fixture(scope="module")
def model():
    config = BertConfig(vocab_size=V, max_length=T, num_layers=1, num_heads=2, embed_dim=8, dropout_rate=0.0)
    params = init_params(config.build(), jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return config, jax.tree.map(lambda x: 4 * x if x.ndim > 1 else x, params)


@pytest.fixture
def batch(rng):
    weights = (rng.random((B, M)) < 0.6).astype(np.float32)
    weights[0] = 1
    pair_weights = np.ones(B, np.float32)
    weights[5], pair_weights[5] = 0, 0  # a padding row of the last batch
    return {
        "tokens": rng.integers(0, V, (B, T)).astype(np.int32),
        "token_type_ids": np.sort(rng.integers(0, 2, (B, T)), axis=1).astype(np.int32),
        "segment_ids": (np.arange(T) < rng.integers(5, T, (B, 1))).astype(np.int32),
        "masked_positions": rng.integers(0, T, (B, M)).astype(np.int32),
        "targets": rng.integers(0, V, (B, M)).astype(np.int32),
        "weights": weights,
        "next_sentence": rng.integers(0, 2, B).astype(np.int32),
        "pair_weights": pair_weights,
    }


def test_the_loss_is_the_sum_of_two_means(model, batch):
    config, params = model
    apply = make_apply(config.build())
    total, weight, metrics = MaskedLM().loss(apply, params, MaskedLM().prepare(batch), None)
    out = apply(params, batch["tokens"], token_type_ids=batch["token_type_ids"], segment_ids=batch["segment_ids"])
    words = jnp.take_along_axis(out["masked_lm"], batch["masked_positions"][..., None], 1)
    word_nll = optax.softmax_cross_entropy_with_integer_labels(words, batch["targets"])
    pair_nll = optax.softmax_cross_entropy_with_integer_labels(out["next_sentence"], batch["next_sentence"])
    mean = lambda x, w: float((x * w).sum() / w.sum())
    wanted = mean(word_nll, batch["weights"]) + mean(pair_nll, batch["pair_weights"])
    assert float(total / weight) == pytest.approx(wanted, rel=1e-5)
    averages = means(metrics, weight)
    assert float(averages["loss"]) == pytest.approx(mean(word_nll, batch["weights"]), rel=1e-5)
    assert float(averages["next_sentence_loss"]) == pytest.approx(mean(pair_nll, batch["pair_weights"]), rel=1e-5)
    right = np.asarray(words.argmax(-1) == batch["targets"])
    assert float(averages["accuracy"]) == pytest.approx(mean(right, batch["weights"]))


def test_microbatches_give_the_step_of_the_whole_batch(model, batch):
    config, params = model
    apply, optimizer = make_apply(config.build()), optax.sgd(1.0)
    states, metrics = [], []
    for accum in (1, 4):
        step = jax.jit(make_step(apply, MaskedLM(), optimizer, lambda step: 1.0, accum_steps=accum))
        state, step_metrics = step(new_state(params, optimizer, 0, None), batch)
        states.append(state.params)
        metrics.append(step_metrics)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *states)
    for name in ("loss", "accuracy", "next_sentence_accuracy", "next_sentence_loss"):
        assert float(metrics[0][name]) == pytest.approx(float(metrics[1][name]), rel=1e-5)


def test_the_loss_equals_transformers(model, batch, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from jaxnlp.interop.huggingface import save

    config, params = model
    save(tmp_path, config, params)
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path, attn_implementation="eager").eval()
    batch["masked_positions"] = np.argsort(np.random.default_rng(1).random((B, 5)), 1)[:, :M].astype(np.int32)
    batch["weights"] = np.ones((B, M), np.float32)
    batch["pair_weights"] = np.ones(B, np.float32)
    labels = np.full((B, T), -100)
    np.put_along_axis(labels, batch["masked_positions"], batch["targets"], 1)
    inputs = {
        "input_ids": batch["tokens"],
        "token_type_ids": batch["token_type_ids"],
        "attention_mask": batch["segment_ids"],
        "labels": labels,
        "next_sentence_label": batch["next_sentence"],
    }
    with torch.no_grad():
        wanted = theirs(**{k: torch.from_numpy(np.asarray(v, np.int64)) for k, v in inputs.items()}).loss.item()
    total, weight, _ = MaskedLM().loss(make_apply(config.build()), params, MaskedLM().prepare(batch), None)
    assert float(total / weight) == pytest.approx(wanted, rel=1e-5)


def test_heads_and_examples_must_agree(model, batch):
    config, params = model
    apply = make_apply(config.build())
    alone = {k: x for k, x in batch.items() if k not in ("next_sentence", "pair_weights")}
    with pytest.raises(UserError, match=r'model.heads.*\("masked_lm",\)'):
        MaskedLM().loss(apply, params, alone, None)
    headless = make_apply(BertConfig(**{**vars(config), "heads": ("masked_lm",)}).build())
    with pytest.raises(UserError, match="model.heads.*next_sentence"):
        MaskedLM().loss(headless, params, MaskedLM().prepare(batch), None)
    total, weight, metrics = MaskedLM().loss(headless, params, alone, None)
    assert set(metrics) == {"loss", "accuracy"} and float(total) == float(metrics["loss"])
