"""GPT against Hugging Face transformers' GPT-2: logits, gradients, and fifty steps of training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.models.gpt import GPTConfig
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.optim import OptimConfig, make_optimizer
from jaxnlp.sharding.functional import abstract_params, make_apply
from jaxnlp.training.step.state import new_state
from jaxnlp.training.step.step import make_step

from .. import reference
from ..reference import torch

SHAPES = [
    {"layers": 2, "heads": 4, "dim": 32, "vocab": 65, "length": 24},
    {"layers": 1, "heads": 3, "dim": 21, "vocab": 50, "length": 7},
    {"layers": 3, "heads": 1, "dim": 12, "vocab": 11, "length": 33},
]


def ours(shape):
    return GPTConfig(
        vocab_size=shape["vocab"],
        max_length=shape["length"],
        num_layers=shape["layers"],
        num_heads=shape["heads"],
        embed_dim=shape["dim"],
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s['layers']}x{s['dim']}")
def test_logits_and_gradients(shape, rng):
    model = reference.gpt2(**shape)
    params = reference.gpt2_params(model, shape["heads"])
    ids = rng.integers(0, shape["vocab"], (3, shape["length"]))
    padding = np.ones_like(ids)
    padding[1, : shape["length"] // 3] = 0  # left padding, as in generation
    positions = np.maximum(np.cumsum(padding, 1) - 1, 0)
    output = model(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(padding), position_ids=torch.from_numpy(positions)
    ).logits
    apply = make_apply(ours(shape).build())
    logits = jax.jit(apply)(
        params, jnp.asarray(ids), segment_ids=jnp.asarray(padding), positions=jnp.asarray(positions)
    )
    real = padding.astype(bool)
    wanted = output.detach().numpy()
    scale = np.abs(wanted[real]).max()
    assert np.abs(np.asarray(logits) - wanted)[real].max() <= 2e-5 * scale

    weight = torch.from_numpy(rng.standard_normal(wanted.shape).astype(np.float32) * real[..., None])
    (output * weight).sum().backward()

    def loss(params):
        out = apply(params, jnp.asarray(ids), segment_ids=jnp.asarray(padding), positions=jnp.asarray(positions))
        return (out * weight.numpy()).sum()

    actual = jax.jit(jax.grad(loss))(params)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.grad
        assert parameter.grad is not None, name
    wanted = reference.gpt2_params(model, shape["heads"])

    def close(path, a, b):
        difference, size = np.abs(a - b).max(), np.abs(b).max()
        assert difference <= 5e-5 * size + 1e-6, f"{jax.tree_util.keystr(path)}: {difference} of {size}"

    jax.tree_util.tree_map_with_path(close, actual, wanted)


def test_fifty_adamw_steps_follow_torch(rng):
    """With the same initial weights and batches in float32, the loss of every step agrees within 1e-4 relative."""
    shape = {"layers": 2, "heads": 4, "dim": 32, "vocab": 65, "length": 24}
    steps, lr, decay = 50, 3e-3, 0.1
    model = reference.gpt2(**shape).train()
    params = reference.gpt2_params(model, shape["heads"])
    # A corpus with something to learn: a random walk over the vocabulary.
    walk = np.cumsum(rng.integers(-2, 3, (steps, 8, 25)), axis=-1) % shape["vocab"]

    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
    theirs = []
    for batch in walk:
        x, y = torch.from_numpy(batch[:, :-1]), torch.from_numpy(batch[:, 1:])
        loss = torch.nn.functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        theirs.append(loss.item())

    config = ours(shape)
    _, axes = abstract_params(config.build(), jnp.zeros((1, 4), jnp.int32))
    optim = OptimConfig(learning_rate=lr, schedule="constant", weight_decay=decay, clip_norm=1.0)
    transform, schedule = make_optimizer(optim, steps, axes)
    step = jax.jit(make_step(make_apply(config.build()), CausalLM(), transform, schedule))
    state = new_state(params, transform, 0, None)
    losses = []
    for batch in walk.astype(np.int32):
        rows = {"tokens": batch[:, :-1], "targets": batch[:, 1:], "weights": np.ones((8, 24), np.float32)}
        state, metrics = step(state, rows)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, theirs, rtol=1e-4)
    assert losses[-1] < 0.75 * losses[0]  # training lowers the loss
