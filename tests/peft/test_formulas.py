"""PEFT methods equal their papers' formulas in NumPy and torch, on small arrays."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.optim import OptimConfig, make_optimizer
from jaxnlp.peft.adapter import Adapter
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.method import SHARED
from jaxnlp.peft.prefix import KEY, VALUE, Prefix
from jaxnlp.peft.prompt import PROMPT, PTuning
from jaxnlp.peft.tuning import attach
from jaxnlp.sharding.functional import init_params, make_apply
from jaxnlp.trees import get_at, merge

from .test_properties import model, moved

P, H = 5, 3


class Sublayer(nn.Module):
    """A single linear map."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1], name="mlp")(x)


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_adapter_is_a_bottleneck_added_to_what_the_sublayer_returns(activation):
    x = jax.random.normal(jax.random.key(0), (2, 3, 6))
    base = init_params(Sublayer(), jax.random.key(1), x)
    tuning = attach(Adapter(targets=("mlp",), bottleneck=4, activation=activation), Sublayer(), x)
    now = moved(tuning.init(jax.random.key(2), base), by=0.5)
    actual = tuning.apply(make_apply(Sublayer()))(merge(base, now), x)
    h, a = np.asarray(x @ base["mlp"]["kernel"] + base["mlp"]["bias"]), jax.device_get(now)["mlp"]
    z = ACTIVATIONS[activation](h @ a["adapter_down"] + a["adapter_down_bias"])
    np.testing.assert_allclose(actual, h + z @ a["adapter_up"] + a["adapter_up_bias"], rtol=1e-5, atol=1e-6)


def made(method):
    """(the parameters of the method's network, the leaves that it computes from them by module path)."""
    module, inputs, base = model("gpt")
    tuning = attach(method, module, *inputs)
    now = moved(tuning.init(jax.random.key(2), base), by=0.3)
    done = tuning.expanded(merge(base, now))
    return jax.device_get(now)[SHARED], {path: get_at(done, path) for path in tuning.leaves}


def dense(w, name, x):
    return x @ w[f"{name}_kernel"] + w[f"{name}_bias"]


def test_the_mlp_of_p_tuning_has_three_layers():
    w, leaves = made(PTuning(length=P, hidden_dim=H))
    x = np.maximum(dense(w, "dense_0", w["inputs"]), 0)
    wanted = dense(w, "dense_2", np.maximum(dense(w, "dense_1", x), 0))
    np.testing.assert_allclose(leaves[("embed",)][PROMPT], wanted, rtol=1e-5, atol=1e-6)


def test_the_lstm_of_p_tuning_is_torchs():
    """Two bidirectional layers, followed by two linear maps with a ReLU between them."""
    torch = pytest.importorskip("torch")
    w, leaves = made(PTuning(length=P, hidden_dim=H, encoder="lstm"))
    D = w["inputs"].shape[1]
    lstm = torch.nn.LSTM(D, H, num_layers=2, bidirectional=True, batch_first=True)
    weights = {}
    for layer in range(2):
        for way, end in (("forward", ""), ("backward", "_reverse")):
            name = f"lstm_{layer}_{way}"
            weights[f"weight_ih_l{layer}{end}"] = w[f"{name}_inputs"].T
            weights[f"weight_hh_l{layer}{end}"] = w[f"{name}_hidden"].T
            weights[f"bias_ih_l{layer}{end}"] = w[f"{name}_bias"]
            weights[f"bias_hh_l{layer}{end}"] = np.zeros_like(w[f"{name}_bias"])
    lstm.load_state_dict({name: torch.tensor(np.ascontiguousarray(x)) for name, x in weights.items()})
    with torch.no_grad():
        states = lstm(torch.tensor(w["inputs"])[None])[0][0].numpy()
    wanted = dense(w, "dense_1", np.maximum(dense(w, "dense_0", states), 0))
    np.testing.assert_allclose(leaves[("embed",)][PROMPT], wanted, rtol=1e-5, atol=1e-6)


def test_the_network_of_a_prefix_makes_keys_and_values_of_every_layer():
    w, leaves = made(Prefix(length=P, hidden_dim=H))
    h = np.tanh(dense(w, "dense_0", w["inputs"]))
    wanted = np.einsum("ph,hlcnk->lcpnk", h, w["dense_1_kernel"]) + w["dense_1_bias"][:, :, None]
    for i in range(2):
        layer = leaves[(f"block_{i}", "attention")]
        for j, name in enumerate((KEY, VALUE)):
            np.testing.assert_allclose(layer[name], wanted[i, j], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_lora_plus_moves_b_by_a_multiple_and_a_as_before(optimizer):
    """Hayou et al. 2024, equation 1."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 6))
    base = init_params(Sublayer(), jax.random.key(1), x)
    optim = OptimConfig(name=optimizer, learning_rate=1e-2, schedule="constant", weight_decay=0.0)
    steps = {}
    for rate in (1.0, 16.0):
        tuning = attach(LoRA(targets=("mlp",), rank=2, lora_plus_ratio=rate), Sublayer(), x)
        now = moved(tuning.init(jax.random.key(2), base))
        run = tuning.apply(make_apply(Sublayer()))
        grads = jax.grad(lambda tuned, run=run: jnp.mean(jnp.square(run(merge(base, tuned), x))))(now)
        tx, _ = make_optimizer(optim, 10, tuning.axes, tuning.rates(now))
        steps[rate] = tx.update(grads, tx.init(now), now)[0]

    def compare(path, plain, plus):
        assert float(jnp.max(jnp.abs(plain))) > 0
        np.testing.assert_allclose(plus, plain * (16 if path[-1].key == "lora_b" else 1), rtol=1e-5)

    jax.tree_util.tree_map_with_path(compare, steps[1.0], steps[16.0])


def test_dora_divides_by_the_length_of_the_sum():
    """Liu et al. 2024, equation 5: m (W + s A B) / |W + s A B|, with the norm of each column."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 6))
    base = init_params(Sublayer(), jax.random.key(1), x)
    method = LoRA(targets=("mlp",), rank=2, alpha=3.0, use_dora=True)
    for chosen, scale in ((method, 3 / 2), (dataclasses.replace(method, use_rslora=True), 3 / math.sqrt(2))):
        tuning = attach(chosen, Sublayer(), x)
        now = moved(tuning.init(jax.random.key(2), base), by=0.5)
        actual = tuning.apply(make_apply(Sublayer()))(merge(base, now), x)
        a = jax.device_get(now)["mlp"]
        kernel = np.asarray(base["mlp"]["kernel"]) + scale * a["lora_a"] @ a["lora_b"]
        kernel = a["lora_magnitude"] * kernel / np.linalg.norm(kernel, axis=0)
        np.testing.assert_allclose(actual, np.asarray(x) @ kernel + base["mlp"]["bias"], rtol=1e-4, atol=1e-5)


def test_doras_gradient_holds_the_lengths_of_the_sum_constant():
    """Liu et al. 2024, equation 11: the gradient treats the norm as a constant."""
    x, weights = (jax.random.normal(jax.random.key(i), (2, 3, 6)) for i in range(2))
    base = init_params(Sublayer(), jax.random.key(1), x)
    tuning = attach(LoRA(targets=("mlp",), rank=2, alpha=3.0, use_dora=True), Sublayer(), x)
    now = moved(tuning.init(jax.random.key(2), base), by=0.5)
    run = tuning.apply(make_apply(Sublayer()))
    grads = jax.grad(lambda now: (weights * run(merge(base, now), x)).sum())(now)["mlp"]
    a = jax.device_get(now)["mlp"]
    lengths = np.linalg.norm(np.asarray(base["mlp"]["kernel"]) + 1.5 * a["lora_a"] @ a["lora_b"], axis=0)
    wanted = 1.5 * np.einsum("bti,ir,bto->ro", x, a["lora_a"], weights * a["lora_magnitude"] / lengths)
    np.testing.assert_allclose(grads["lora_b"], wanted, rtol=1e-4, atol=1e-5)
