"""Attention kernels agree in outputs and gradients; masks follow their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.nn import kernels
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.policy import Policy

F32 = Policy()


def inputs(rng, B=2, T=24, S=None, H=4, N=2, K=8):
    shapes = ((B, T, H, K), (B, S or T, N, K), (B, S or T, N, K))
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def reference(q, k, v, allowed, softcap=None):
    """Attention in NumPy, head by head, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            n = h * k.shape[2] // q.shape[2]
            scores = q[b, :, h] @ k[b, :, n].T / np.sqrt(q.shape[-1])
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            scores = np.where(allowed[b if allowed.shape[0] > 1 else 0, 0], scores, -1e30)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, n]
    return out


SEGMENTS = jnp.asarray([[1] * 10 + [2] * 14, [1] * 5 + [2] * 5 + [3] * 11 + [0] * 3])
MASKS = {"causal": Mask(), "segments": Mask(query_segments_BT=SEGMENTS, key_segments_BS=SEGMENTS)}
KERNELS = {
    "einsum": kernels.Einsum(),
    "blocked": kernels.Blocked(block=7),
    "dot_product": kernels.DotProduct(),
    "one block": kernels.Blocked(block=24),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_equal_the_formula(rng, kernel, mask):
    q, k, v = inputs(rng)
    out = jax.jit(functools.partial(KERNELS[kernel], policy=F32))(q, k, v, MASKS[mask])
    wanted = reference(q, k, v, np.asarray(MASKS[mask].dense(24, 24)))
    real = np.ones((2, 24), bool) if mask == "causal" else np.asarray(SEGMENTS) != 0
    np.testing.assert_allclose(out[real], wanted[real], atol=2e-6)


@pytest.mark.parametrize("kernel", ["blocked", "dot_product"])
def test_kernels_have_the_same_gradients(rng, kernel):
    args = inputs(rng)
    weight = jnp.asarray(rng.standard_normal(args[0].shape), jnp.float32) * (SEGMENTS != 0)[..., None, None]

    def loss(kernel, q, k, v):
        return (kernel(q, k, v, MASKS["segments"], policy=F32) * weight).sum()

    wanted = jax.jit(jax.grad(functools.partial(loss, kernels.Einsum()), (0, 1, 2)))(*args)
    actual = jax.jit(jax.grad(functools.partial(loss, KERNELS[kernel]), (0, 1, 2)))(*args)
    for a, b in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_written_out_backward_pass_equals_autodiff(rng):
    q, k, v = inputs(rng, T=12, N=4)
    allowed = Mask().dense(12, 12)

    def plain(q, k, v):
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
        return jnp.sin(jnp.einsum("bhts,bshk->bthk", weights, v)).sum()

    ours = lambda q, k, v: jnp.sin(kernels.attend(q, k, v, allowed, policy=F32)).sum()
    for a, b in zip(jax.grad(ours, (0, 1, 2))(q, k, v), jax.grad(plain, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_softcap_and_its_gradient(rng):
    q, k, v = inputs(rng, T=12)
    out = kernels.Einsum()(3 * q, k, v, Mask(), policy=F32, softcap=2.0)
    np.testing.assert_allclose(out, reference(3 * q, k, v, np.asarray(Mask().dense(12, 12)), 2.0), atol=2e-6)


def test_dropout_keeps_the_mean_and_needs_its_key(rng):
    q, k, v = inputs(rng, T=12)
    plain = kernels.Einsum()(q, k, v, Mask(), policy=F32)
    drop = lambda key: kernels.Einsum()(q, k, v, Mask(), policy=F32, dropout=(0.25, key))
    many = jax.vmap(drop)(jax.random.split(jax.random.key(0), 4000))
    assert not np.allclose(many[0], many[1])
    np.testing.assert_allclose(many.mean(0), plain, atol=0.08)


def test_low_precision_operands_stay_close(rng):
    q, k, v = inputs(rng)
    out = kernels.Einsum()(q, k, v, Mask(), policy=Policy(matmul_dtype="bfloat16"))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, kernels.Einsum()(q, k, v, Mask(), policy=F32), atol=0.03)


def test_a_row_with_nothing_to_attend_to_is_finite(rng):
    q, k, v = inputs(rng, T=4)
    zeros = jnp.zeros((2, 4), jnp.int32)
    mask = Mask(query_segments_BT=zeros, key_segments_BS=zeros)
    out, grad = jax.value_and_grad(lambda q: kernels.Einsum()(q, k, v, mask, policy=F32).sum())(q)
    assert jnp.isfinite(out) and jnp.isfinite(grad).all()


def test_mask_rows_are_a_slice_of_the_whole():
    whole = np.asarray(MASKS["segments"].dense(24, 24))
    part = np.asarray(MASKS["segments"].rows(7, 14).dense(7, 14))
    np.testing.assert_array_equal(part, whole[:, :, 7:14, :14])


@pytest.mark.slow
@pytest.mark.parametrize("softcap, K", [(None, 64), (5.0, 128)])
def test_the_tpu_kernel_in_interpreter_equals_einsum(rng, softcap, K):
    q, k, v = inputs(rng, B=1, T=256, H=2, N=1, K=K)
    segments = jnp.asarray([[1] * 100 + [2] * 156])
    mask = Mask(query_segments_BT=segments, key_segments_BS=segments)

    def loss(kernel, q, k, v):
        return jnp.sin(kernel(q, k, v, mask, policy=F32, softcap=softcap)).sum()

    flash, einsum = kernels.Flash(block=128, interpret=True), kernels.Einsum()
    for kernel_grad in ((lambda f: f), functools.partial(jax.grad, argnums=(0, 1, 2))):
        actual, wanted = (kernel_grad(functools.partial(loss, k_))(q, k, v) for k_ in (flash, einsum))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), actual, wanted)


def test_heads_are_kept_in_full_lanes(rng):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in inputs(rng, B=2, T=16, H=2, N=2, K=32))
    ids = jnp.arange(32).reshape(2, 16)

    def run(q, k, v, ids):
        return jnp.tanh(q * ids[:, None, :, None]) @ (jnp.swapaxes(k, 2, 3) @ v)

    def whole(q, k, v):
        return kernels.in_full_lanes(run, q, k, v, ids)

    def loss(f, *arrays):
        return jnp.sin(f(*arrays)).sum()

    plain = lambda q, k, v: run(q, k, v, ids)
    actual, wanted = (jax.value_and_grad(functools.partial(loss, f), (0, 1, 2))(q, k, v) for f in (whole, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), actual, wanted)
    residuals = [x.shape for x in jax.tree.leaves(jax.vjp(whole, q, k, v)[1])]
    assert (16, 128) in residuals and (2, 2, 16, 32) not in residuals, residuals
