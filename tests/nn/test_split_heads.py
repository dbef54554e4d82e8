"""With query heads split over devices, with or without key heads, every kernel equals `Einsum` on one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.nn import kernels
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.nn.policy import Policy
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.rules import ACTIVATIONS

T, K = 128, 16
WHOLE_KEYS = {**ACTIVATIONS, "kv_heads": None}
SEGMENTS = jnp.asarray([[1] * 50 + [2] * 78, [1] * 90 + [2] * 38])
FLASH = kernels.Flash(block=128, interpret=True)


def inputs(rng, H, N):
    shapes = ((2, T, H, K), (2, T, N, K), (2, T, N, K))
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def both(kernel, arrays):
    """The output, and the gradient of a function of it with respect to queries, keys and values."""

    def loss(q, k, v):
        mask = Mask(query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS)
        out = kernel(q, k, v, mask, policy=Policy())
        return jnp.sin(out).sum(), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)


def equal(rng, kernel, rules, sizes, H, N):
    arrays = inputs(rng, H, N)
    wanted = both(kernels.Einsum(), arrays)
    with jax.set_mesh(make_mesh(MeshConfig(**sizes))), axis_rules(rules):
        actual = both(kernel, arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), actual, wanted)


@pytest.mark.parametrize("N", [2, 4], ids=["as many key heads as a device has query heads", "more"])
def test_flash_with_whole_keys_on_every_device(rng, N):
    equal(rng, FLASH, WHOLE_KEYS, {"data": 2, "tensor": 4}, 8, N)


def test_flash_with_both_split(rng):
    equal(rng, FLASH, ACTIVATIONS, {"data": 2, "tensor": 4}, 8, 4)


def test_flash_with_queries_whole_and_keys_split(rng):
    equal(rng, FLASH, {**ACTIVATIONS, "heads": None}, {"data": 2, "tensor": 4}, 8, 4)


@pytest.mark.parametrize("kernel", [kernels.Blocked(block=50), kernels.DotProduct()], ids=lambda k: type(k).__name__)
def test_kernels_that_the_compiler_splits(rng, kernel):
    equal(rng, kernel, WHOLE_KEYS, {"data": 2, "tensor": 4}, 8, 2)


def test_keys_that_are_split_as_queries_are_not_repeated(rng):
    arrays = inputs(rng, 8, 4)
    heads = lambda: jax.eval_shape(lambda *x: kernels.beside_queries(*x)[0], *arrays).shape[2]
    for rules, sizes, wanted in ((ACTIVATIONS, 4, 4), (WHOLE_KEYS, 4, 8), (WHOLE_KEYS, 1, 4)):
        with jax.set_mesh(make_mesh(MeshConfig(data=8 // sizes, tensor=sizes))), axis_rules(rules):
            assert heads() == wanted
    assert heads() == 4


def test_cudnn_is_given_keys_that_are_split_as_queries_are(rng, monkeypatch):
    """cuDNN does not run on CPUs, so XLA's implementation computes with its arguments."""
    plain, key_heads = jax.nn.dot_product_attention, []

    def instead(q, k, v, *args, implementation, **scores):
        assert implementation == "cudnn"
        key_heads.append(k.shape[2])
        return plain(q, k, v, *args, implementation="xla", **scores)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    kernel = kernels.DotProduct(implementation="cudnn")
    equal(rng, kernel, WHOLE_KEYS, {"data": 2, "tensor": 4}, 8, 2)
    equal(rng, kernel, ACTIVATIONS, {"data": 2, "tensor": 4}, 8, 4)
    assert key_heads[0] == 8 and key_heads[-1] == 4


def test_key_heads_that_do_not_divide_are_told(rng):
    message = r"activations\['kv_heads'\]='tensor': .*kv_heads=2, .* 4 devices; .*None"
    run = functools.partial(FLASH, mask=Mask(), policy=Policy())
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    with jax.set_mesh(mesh), axis_rules(ACTIVATIONS), pytest.raises(UserError, match=message):
        jax.eval_shape(run, *inputs(rng, 8, 2))
