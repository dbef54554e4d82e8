"""GPT's objective: sums over real tokens, and the z-loss."""

import numpy as np
import optax
import pytest

from jaxnlp.objectives.causal_lm import CausalLM

B, T, V = 2, 5, 7


def test_sums_are_those_of_optax_over_real_tokens_and_the_z_loss_adds_squares(rng):
    logits = rng.standard_normal((B, T, V)).astype(np.float32)
    targets, weights = rng.integers(0, V, (B, T)), np.ones((B, T), np.float32)
    weights[1, 3:] = 0.0
    logits[1, 4, targets[1, 4]] = -np.inf  # the target of padding may have probability zero
    batch = {"tokens": targets, "targets": targets, "weights": weights}
    total, weight, metrics = CausalLM(z_loss=0.5).loss(lambda *_, **__: logits, {}, batch, None)
    real = weights > 0
    log_z = np.log(np.exp(logits).sum(-1))
    nll = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, targets))[real].sum()
    assert float(weight) == real.sum()
    assert float(metrics["loss"]) == pytest.approx(nll, rel=1e-5)
    assert float(total) == pytest.approx(nll + 0.5 * (log_z[real] ** 2).sum(), rel=1e-5)
