"""Masks compose: each condition equals its definition pair by pair, and every kernel takes every mask."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.nn import kernels
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.policy import Policy

T = 12
SEGMENTS = np.asarray([[1] * 5 + [2] * 7, [1] * 3 + [2] * 6 + [0] * 3])
KEYS = np.asarray([[1] * 9 + [0] * 3, [3] * 12])
PREFIX = np.asarray([4, 9])
CONDITIONS = {
    "causal": [False, True],
    "window": [None, 3],
    "prefix": [None, PREFIX],
    "segments": [None, "both", "keys"],
}
CASES = [dict(zip(CONDITIONS, case, strict=True)) for case in itertools.product(*CONDITIONS.values())]


def make(case) -> Mask:
    queries, keys = {None: (None, None), "both": (SEGMENTS, SEGMENTS), "keys": (None, KEYS)}[case["segments"]]
    array = lambda x: None if x is None else jnp.asarray(x)
    return Mask(
        causal=case["causal"],
        window=case["window"],
        prefix_B=array(case["prefix"]),
        query_segments_BT=array(queries),
        key_segments_BS=array(keys),
    )


def allowed(case, b: int, t: int, s: int) -> bool:
    """The definition, one pair at a time."""
    if case["causal"] and s > t and not (case["prefix"] is not None and s < case["prefix"][b]):
        return False
    if case["window"] is not None and abs(t - s) >= case["window"]:
        return False
    if case["segments"] == "both":
        return SEGMENTS[b, s] != 0 and SEGMENTS[b, t] == SEGMENTS[b, s]
    return not (case["segments"] == "keys" and KEYS[b, s] == 0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_dense_mask_is_the_definition(case):
    wanted = [[[allowed(case, b, t, s) for s in range(T)] for t in range(T)] for b in range(2)]
    dense = make(case).dense(T, T)
    if dense is None:
        assert np.all(wanted)
    else:
        np.testing.assert_array_equal(np.broadcast_to(dense, (2, 1, T, T))[:, 0], wanted)


@pytest.mark.parametrize("kernel", [kernels.Blocked(block=5), kernels.DotProduct()], ids=lambda k: type(k).__name__)
def test_kernels_agree_under_every_mask_with_bias_and_scale(rng, kernel):
    q, k, v = (jnp.asarray(rng.standard_normal((2, T, 4, 8)), jnp.float32) for _ in range(3))
    bias = jnp.asarray(rng.standard_normal((1, 4, T, T)), jnp.float32)
    scores = {"policy": Policy(), "scale": 0.7, "bias": bias}
    run = jax.jit(lambda kernel, mask: kernel(q, k, v, mask, **scores), static_argnums=0)
    for case in CASES:
        mask = make(case)
        dense = mask.dense(T, T)
        some = np.ones((2, T), bool) if dense is None else np.broadcast_to(dense, (2, 1, T, T))[:, 0].any(-1)
        actual, wanted = (np.asarray(run(which, mask)) for which in (kernel, kernels.Einsum()))
        np.testing.assert_allclose(actual[some], wanted[some], atol=2e-6, err_msg=str(case))


def test_bias_reaches_its_gradient(rng):
    q, k, v = (jnp.asarray(rng.standard_normal((2, T, 2, 8)), jnp.float32) for _ in range(3))
    bias = jnp.asarray(rng.standard_normal((1, 2, T, T)), jnp.float32)

    def loss(kernel, bias):
        return jnp.sin(kernel(q, k, v, Mask(), policy=Policy(), bias=bias)).sum()

    actual, wanted = (jax.grad(functools.partial(loss, k))(bias) for k in (kernels.Blocked(block=5), kernels.Einsum()))
    np.testing.assert_allclose(actual, wanted, atol=2e-6)
    assert np.abs(np.asarray(wanted)).max() > 1e-2


@pytest.mark.slow
def test_the_tpu_kernel_knows_windows_and_keys_that_are_padding(rng):
    q, k, v = (jnp.asarray(rng.standard_normal((1, 256, 1, 128)), jnp.float32) for _ in range(3))
    keys = jnp.asarray([[1] * 200 + [0] * 56])
    for mask in (Mask(window=40), Mask(causal=False, window=40), Mask(causal=False, key_segments_BS=keys)):
        run = lambda kernel, mask=mask: kernel(q, k, v, mask, policy=Policy(), scale=0.1)
        actual, wanted = run(kernels.Flash(block=128, interpret=True)), run(kernels.Einsum())
        np.testing.assert_allclose(actual, wanted, rtol=2e-4, atol=2e-4)
    with pytest.raises(UserError, match="prefix"):
        kernels.Flash(block=128, interpret=True)(q, k, v, Mask(prefix_B=jnp.asarray([3])), policy=Policy())
