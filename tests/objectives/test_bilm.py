"""ELMo's objective equals torch's cross-entropy of both directions, also with microbatches and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.characters import Characters
from jaxnlp.models.elmo import ElmoConfig
from jaxnlp.nn.character_cnn import NO_WORD, spell
from jaxnlp.objectives.bilm import BiLM
from jaxnlp.objectives.objective import means
from jaxnlp.optim import OptimConfig
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import FSDP, Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build

B, T, C, V = 8, 6, 5, 11


@pytest.fixture
def batch(rng):
    """Rows of two documents and padding; the last row is only padding."""
    words = [bytes(rng.integers(97, 123, rng.integers(1, 4)).tolist()) for _ in range(B * T)]
    segments = np.where(np.arange(T) < rng.integers(2, T + 1, (B, 1)), 1 + (np.arange(T) > 2), 0)
    segments[-1] = 0
    fields = {
        "tokens": np.where(segments[..., None] > 0, spell(words, C).reshape(B, T, C), NO_WORD),
        "segment_ids": segments.astype(np.int32),
    }
    for way in ("forward", "backward"):
        fields[f"{way}_targets"] = rng.integers(0, V, (B, T)).astype(np.int32)
        fields[f"{way}_weights"] = ((segments > 0) & (rng.random((B, T)) < 0.8)).astype(np.float32)
    return fields


def test_the_loss_is_torchs_cross_entropy_of_both_directions(rng, batch):
    torch = pytest.importorskip("torch")
    logits = {way: rng.standard_normal((B, T, V)).astype(np.float32) for way in ("forward", "backward")}
    wanted, count = {}, {}
    for way, x in logits.items():
        targets = np.where(batch[f"{way}_weights"] > 0, batch[f"{way}_targets"], -100).reshape(-1)
        loss = torch.nn.functional.cross_entropy
        wanted[way] = loss(torch.from_numpy(x.reshape(-1, V)), torch.from_numpy(targets).long(), reduction="sum").item()
        count[way] = (targets >= 0).sum()
        x[-1] = np.inf  # padding may have any content
    out = {way: jnp.asarray(x) for way, x in logits.items()}
    total, weight, metrics = BiLM().loss(lambda *_, **__: out, {}, batch, None)
    assert count["forward"] != count["backward"] and float(weight) == sum(count.values()) / 2
    assert float(total) == pytest.approx(sum(wanted.values()) / 2, rel=1e-5)
    averages = means(metrics, weight)
    assert float(total / weight) == pytest.approx(sum(wanted.values()) / sum(count.values()), rel=1e-5)
    for way in wanted:
        assert float(averages[f"{way}_nll"]) == pytest.approx(wanted[way] / count[way], rel=1e-5)


def stepped(batch, devices, **fields):
    """(parameters, metrics) after two steps of SGD, whose update is the gradient."""
    sizes = {"char_dim": 4, "filters": ((1, 4), (2, 4)), "embed_dim": 8, "hidden_dim": 12, "dropout_rate": 0.0}
    e = Experiment(
        model=ElmoConfig(vocab_size=V, max_chars=C, **sizes),
        data=DataConfig(task=Characters(max_chars=C), seq_len=T, batch_size=B),
        objective=BiLM(),
        optim=OptimConfig(name="sgd", learning_rate=0.5, schedule="constant", clip_norm=None),
        **fields,
    )
    program = build(e, jax.devices()[:devices])
    state = program.init()
    for _ in range(2):
        state, metrics = program.step(state, program.shard_batch(batch))
    return jax.device_get(state.params), {name: float(x) for name, x in metrics.items()}, program


def test_microbatches_and_eight_devices_give_the_step_of_one(batch):
    params, metrics, program = stepped(batch, 1)
    begun = jax.device_get(program.init().params)
    assert all(np.abs(a - b).max() > 1e-6 for a, b in zip(*map(jax.tree.leaves, (params, begun)), strict=True))
    split = Sharding(mesh=MeshConfig(data=2, fsdp=4), params=dict(FSDP))
    for devices, fields in ((8, {}), (8, {"sharding": split}), (1, {"accum_steps": 4})):
        actual, actual_metrics, _ = stepped(batch, devices, **fields)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), actual, params)
        for name in ("loss", "forward_nll", "backward_nll", "weight"):
            assert actual_metrics[name] == pytest.approx(metrics[name], rel=1e-5)
