"""The encoder-decoder objective: label smoothing equals PyTorch's, padding does not count."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError
from jaxnlp.objectives.seq2seq import Seq2Seq

B, T, V = 3, 5, 11


def batch_of(rng):
    weights = np.ones((B, T), np.float32)
    weights[1, 3:] = weights[2] = 0
    tokens = rng.integers(0, V, (B, T)).astype(np.int32)
    zeros = np.zeros((B, 4), np.int32)
    return {"inputs": zeros, "tokens": tokens, "targets": (tokens + 1) % V, "weights": weights}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_loss_equals_torch(rng, smoothing):
    torch = pytest.importorskip("torch")
    logits, batch = rng.standard_normal((B, T, V)).astype(np.float32), batch_of(rng)
    logits[2] = np.nan  # padding may have any content
    total, weight, metrics = Seq2Seq(label_smoothing=smoothing).loss(
        lambda *_, **__: jnp.asarray(logits), {}, batch, None
    )
    targets = np.where(batch["weights"] > 0, batch["targets"], -100).reshape(-1)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="sum")
    flat = torch.from_numpy(np.nan_to_num(logits).reshape(-1, V))
    wanted = loss(flat, torch.from_numpy(targets).long()).item()
    assert float(total) == pytest.approx(wanted, rel=1e-5) and float(weight) == 8
    right = (logits.argmax(-1) == batch["targets"])[batch["weights"] > 0].sum()
    assert float(metrics["accuracy"]) == right
    assert (float(metrics["loss"]) == pytest.approx(float(total))) == (smoothing == 0)


def test_z_loss_adds_the_square_of_the_log_partition(rng):
    batch, logits = batch_of(rng), jnp.full((B, T, V), 2.0)
    total, weight, metrics = Seq2Seq(z_loss=0.5).loss(lambda *_, **__: logits, {}, batch, None)
    assert float(total - metrics["loss"]) == pytest.approx(8 * 0.5 * (2 + np.log(V)) ** 2, rel=1e-5)


def test_bad_fields_are_named():
    for fields in ({"label_smoothing": 1.0}, {"z_loss": -1.0}):
        with pytest.raises(FieldError, match=next(iter(fields))):
            Seq2Seq(**fields).check()
