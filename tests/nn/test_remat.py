"""Remat changes which activations are saved, and in which memory, but not the gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp import config as configs
from jaxnlp.errors import UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn import remat
from jaxnlp.nn.mlp import GatedMLP
from jaxnlp.nn.remat import PLACES, Remat

SIZES = {"vocab_size": 32, "max_length": 16, "num_layers": 3, "num_heads": 2, "embed_dim": 16}
CHOICES = [*remat.POLICIES, Remat(save=PLACES), Remat(save=("query", "key"), offload=("mlp_hidden",))]


def loss(choice, scan, **fields):
    model = GPTConfig(**SIZES, remat=choice, scan_layers=scan, **fields).build()
    tokens = jnp.arange(32).reshape(2, 16)
    params = model.init(jax.random.key(0), tokens)
    return (lambda p: jnp.square(model.apply(p, tokens)).mean()), params


def saved_bytes(choice, **fields):
    """Bytes saved for the backward pass, without parameters: (on the device, on the host)."""
    f, params = loss(choice, True, **fields)
    residuals = jax.make_jaxpr(lambda p: jax.tree.leaves(jax.vjp(f, p)[1]))(params).out_avals
    weights = {x.shape for x in jax.tree.leaves(params)}
    sizes = {False: 0, True: 0}
    for x in residuals:
        sizes[x.memory_space == jax.memory.Space.Host] += 0 if x.shape in weights else x.size * x.dtype.itemsize
    return sizes[False], sizes[True]


@pytest.mark.parametrize("scan", [True, False])
def test_gradients_are_the_same_under_every_policy(scan):
    f, params = loss("none", scan)
    wanted = jax.jit(jax.grad(f))(params)
    for choice in CHOICES[1:]:
        actual = jax.jit(jax.grad(loss(choice, scan)[0]))(params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), actual, wanted)


def test_policies_keep_less_and_less():
    sizes = [saved_bytes(choice)[0] for choice in ("none", "dots", "names", "full")]
    assert sizes == sorted(set(sizes), reverse=True)


def test_offloaded_places_are_in_the_hosts_memory_and_the_device_keeps_as_little_as_full():
    device, host = saved_bytes("offload")
    assert device == saved_bytes("full")[0]
    layer = 2 * 16 * 16 * 4  # B x T x D x float32
    assert host == 3 * (3 + 1 + 4) * layer  # query, key, value; attention_out; mlp_hidden


@pytest.mark.parametrize("place", PLACES[:-1])
def test_every_place_that_a_gradient_reads_is_kept_when_asked(place):
    # No gradient of a pre-norm block reads mlp_out: the sum after it is the next block's input.
    fields = {"mlp": GatedMLP()} if place == "mlp_hidden" else {}
    size = {"mlp_hidden": 2 * 48}.get(place, 16) * 2 * 16 * 4 * 3
    assert saved_bytes(Remat(offload=(place,)), **fields) == (saved_bytes("full", **fields)[0], size)
    assert saved_bytes(Remat(save=(place,)), **fields) == (saved_bytes("full", **fields)[0] + size, 0)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("some", "remat='some': expected one of none, full, dots, names, offload"),
        (Remat(save=("querry",)), "save='querry': unknown activation; expected one of query, key"),
        (Remat(save=("key",), offload=("key",)), "offload='key': is also in save"),
    ],
)
def test_a_wrong_choice_is_told(choice, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        configs.check(GPTConfig(**SIZES, remat=choice))


def test_a_backend_without_the_hosts_memory_is_told(monkeypatch):
    class Memory:
        kind = "device"

    class Device:
        platform = "abacus"
        addressable_memories = staticmethod(lambda: [Memory()])

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    with pytest.raises(UserError, match="remat='offload': abacus devices have no memory 'pinned_host'"):
        remat.policy("offload")
    assert remat.policy("names") is not None
