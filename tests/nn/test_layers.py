"""Linear maps, norms, positions and losses against plain formulas and autodiff."""

import functools
import re

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnlp.nn import norms, positions
from jaxnlp.nn.kernels import Blocked
from jaxnlp.nn.linear import Embed, Linear, matmul
from jaxnlp.nn.losses import token_nll
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.mlp import ACTIVATIONS
from jaxnlp.nn.policy import Policy


@pytest.mark.parametrize("form", ["auto", "rows", "plain"])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_matmul_and_its_gradients_are_the_ordinary_ones(rng, form, transpose, shape):
    x = jnp.asarray(rng.standard_normal((3, 5, shape[0])), jnp.float32)
    w = jnp.asarray(rng.standard_normal(shape[::-1] if transpose else shape), jnp.float32)
    ours = lambda x, w: jnp.sin(matmul(x, w, Policy(weight_gradient=form), transpose)).sum()
    plain = lambda x, w: jnp.sin(x @ (w.T if transpose else w)).sum()
    actual, wanted = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, w) for f in (ours, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, wanted)


def test_weight_gradients_of_low_precision_products_are_float32(rng):
    x = jnp.asarray(rng.standard_normal((64, 8)), jnp.bfloat16)
    w = jnp.asarray(rng.standard_normal((8, 4)), jnp.float32)
    policy = Policy(compute_dtype="bfloat16")
    grad = jax.grad(lambda w: matmul(x, w, policy).sum())(w)
    assert grad.dtype == jnp.float32
    np.testing.assert_allclose(grad, jax.grad(lambda w: (x.astype(jnp.float32) @ w).sum())(w), rtol=1e-5)


DIMS = {  # of two (2, 3, 6, 6): contracting any pair of axes, with two batch axes
    f"{i}{j}": (((i,), (j,)), ((0, 1), (0, 1))) for i in (2, 3) for j in (2, 3)
}


@pytest.mark.parametrize("dims", DIMS)
def test_bfloat16_products_are_products_of_rounded_operands(rng, dims):
    x, y = (jnp.asarray(rng.standard_normal((2, 3, 6, 6)), jnp.float32) for _ in range(2))
    policy = Policy(matmul_dtype="bfloat16")
    rounded = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (x, y)]
    dot = jax.jit(lambda x, y: policy.dot(policy.operand(x), y, DIMS[dims]))
    np.testing.assert_allclose(dot(x, y), jax.lax.dot_general(*rounded, DIMS[dims]), rtol=1e-5, atol=1e-5)
    swapped = jax.jit(lambda x, y: policy.dot(policy.operand(x.swapaxes(2, 3)), y, DIMS[dims]))
    np.testing.assert_allclose(swapped(x.swapaxes(2, 3), y), dot(x, y), rtol=1e-5, atol=1e-5)


def operands_of_products(fn, *args) -> set[str]:
    """Dtypes that the products in the compiled program read."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    dtypes = dict(re.findall(r"%(\S+) = (\w+)\[", text))
    return {dtypes[name] for pair in re.findall(r" dot\(%(\S+), %(\S+)\)", text) for name in pair}


def test_bfloat16_products_stay_bfloat16_when_compiled(rng):
    """XLA's CPU backend may silently convert them to float32, which makes a step twice as slow."""
    policy = Policy(matmul_dtype="bfloat16")
    x = jnp.asarray(rng.standard_normal((2, 128, 4, 64)), jnp.float32)
    w = jnp.asarray(rng.standard_normal((256, 512)), jnp.float32)
    square = lambda w: policy.dot(w[:, :256], w[:, 256:], (((1,), (0,)), ((), ())))
    if operands_of_products(square, w) != {"bf16"}:
        pytest.skip("XLA has no bfloat16 product for this processor")

    def loss(w, x):
        wide = matmul(x.reshape(2, 128, 256), w, policy)
        y = matmul(wide, w, policy, True).reshape(x.shape)
        return jnp.sin(Blocked()(y, y, y, Mask(), policy=policy)).sum()

    assert operands_of_products(jax.value_and_grad(loss, (0, 1)), w, x) == {"bf16"}


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_activations_equal_jax_in_value_and_gradient_and_keep_their_input_alone(rng, name):
    theirs = {
        "gelu": functools.partial(nn.gelu, approximate=False),
        "gelu_tanh": functools.partial(nn.gelu, approximate=True),
        "silu": nn.silu,
    }
    x = jnp.asarray(rng.standard_normal(1000) * 4, jnp.float32)
    value = lambda f: jax.value_and_grad(lambda x: jnp.sin(f(x)).sum())(x)
    actual, wanted = value(ACTIVATIONS[name]), value(theirs[name])
    tolerance = 1e-5 if name == "gelu_tanh" else 2e-6  # the error of JAX's derivative of that form for x < -5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=tolerance), actual, wanted)

    residuals = jax.tree.leaves(jax.vjp(ACTIVATIONS[name], x)[1])
    assert [leaf.shape for leaf in residuals] == [(1000,)] and (residuals[0] == x).all()


def test_linear_contracts_several_axes(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 5)), jnp.float32)
    layer = Linear((6,), ("heads", "kv", "embed"), Policy(), num_in=2)
    params = nn.meta.unbox(layer.init(jax.random.key(0), x))
    params["params"]["bias"] += 0.5
    assert params["params"]["kernel"].shape == (4, 5, 6)
    wanted = jnp.einsum("bthk,hkd->btd", x, params["params"]["kernel"]) + 0.5
    np.testing.assert_allclose(layer.apply(params, x), wanted, atol=1e-6)


def test_an_id_outside_the_vocabulary_is_not_another_word():
    layer = Embed(5, 3, Policy())
    params = nn.meta.unbox(layer.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))
    out = layer.apply(params, jnp.asarray([[4, 5]]))
    assert jnp.isfinite(out[0, 0]).all() and jnp.isnan(out[0, 1]).all()


@pytest.mark.parametrize("norm", [norms.LayerNorm(), norms.RMSNorm()])
def test_norms_equal_flax_in_value_and_gradient(rng, norm):
    x = jnp.asarray(rng.standard_normal((4, 7, 16)) * 3 + 1, jnp.float32)
    scale = jnp.asarray(rng.standard_normal(16), jnp.float32)
    if isinstance(norm, norms.LayerNorm):
        theirs, params = nn.LayerNorm(epsilon=norm.epsilon), {"scale": scale, "bias": scale[::-1]}
    else:
        theirs, params = nn.RMSNorm(epsilon=norm.epsilon), {"scale": scale}

    def loss(module, params, x):
        return jnp.sin(module.apply({"params": params}, x)).sum()

    actual = jax.value_and_grad(loss, (1, 2))(norm.build(Policy()), params, x)
    wanted = jax.value_and_grad(loss, (1, 2))(theirs, params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), actual, wanted)


def test_sinusoid_is_the_papers_formula_and_shifts_linearly():
    table = np.asarray(positions.sinusoid(jnp.arange(50), 16))
    p, i = 37, 5
    np.testing.assert_allclose(table[p, 2 * i], np.sin(p / 10000 ** (2 * i / 16)), atol=1e-5)
    np.testing.assert_allclose(table[p, 2 * i + 1], np.cos(p / 10000 ** (2 * i / 16)), atol=1e-5)
    # A shift by k is one linear map for every position.
    shift, *_ = np.linalg.lstsq(table[:30], table[7:37], rcond=None)
    np.testing.assert_allclose(table[:43] @ shift, table[7:], atol=2e-3)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (6, 64)])
def test_relative_buckets_equal_t5(bidirectional, buckets, longest):
    pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    import torch

    offset = np.arange(-300, 300)
    theirs = t5.T5Attention._relative_position_bucket(torch.from_numpy(offset), bidirectional, buckets, longest)
    ours = positions.relative_bucket(jnp.asarray(offset), buckets, longest, bidirectional)
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("heads", [1, 4, 6, 12, 16])
def test_alibi_equals_bloom(heads):
    pytest.importorskip("torch")
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    import torch

    theirs = bloom.build_alibi_tensor(torch.ones(1, 9), heads, torch.float32).numpy().reshape(heads, 9)
    ours = positions.Alibi().bias(heads, Policy(), "bias")
    last = np.asarray(ours.apply({}, jnp.asarray([8]), jnp.arange(9)))[0, :, 0]
    np.testing.assert_allclose(last - last[:, :1], theirs, atol=1e-6)  # Bloom's biases differ by a constant per row


SCALINGS = {
    "linear": (positions.LinearScaling(factor=3.0), {"factor": 3.0}),
    "llama3": (
        positions.Llama3Scaling(factor=8.0, original_max_length=64),
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "yarn": (
        positions.Yarn(factor=4.0, original_max_length=128),
        {"factor": 4.0, "original_max_position_embeddings": 128},
    ),
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_rotary_scalings_equal_transformers(kind):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, fields = SCALINGS[kind]
    rope = {"rope_type": kind, "rope_theta": 500.0, **fields}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=512, rope_parameters=rope
    )
    wanted, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    frequency, scale = scaling(500.0 ** (-np.arange(16) / 16), 500.0)
    np.testing.assert_allclose(frequency, wanted.numpy(), rtol=1e-5)
    assert scale == pytest.approx(factor)


def test_rotary_scores_depend_on_the_distance_alone(rng):
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in range(2))
    rotary = positions.Rotary()

    def score(a, b):
        turn = lambda x, p: rotary.rotate(x, jnp.full((1, 1), p))
        return float((turn(q, a) * turn(k, b)).sum())

    assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)


def test_token_nll_equals_optax_and_its_gradient(rng):
    logits = jnp.asarray(rng.standard_normal((3, 4, 11)) * 5, jnp.float32)
    targets = jnp.asarray(rng.integers(0, 11, (3, 4)))
    weight = jnp.asarray(rng.random((3, 4)), jnp.float32)

    def ours(z):
        nll, log_z = token_nll(z, targets)
        return (nll * weight).sum() + 0.1 * (log_z**2).sum()

    def theirs(z):
        nll = optax.softmax_cross_entropy_with_integer_labels(z, targets)
        return (nll * weight).sum() + 0.1 * (jax.nn.logsumexp(z, -1) ** 2).sum()

    actual, wanted = (jax.value_and_grad(f)(logits) for f in (ours, theirs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, wanted)


def products(jaxpr) -> int:
    """Matrix products of a jaxpr, including nested jaxprs."""
    inner = [j for eqn in jaxpr.eqns for j in jax.extend.core.jaxprs_in_params(eqn.params)]
    return sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns) + sum(map(products, inner))


def test_a_weight_that_is_not_trained_has_no_gradient_and_its_input_is_not_kept():
    x, w, policy = jnp.ones((5, 4)), jnp.ones((4, 3)), Policy(weight_gradient="plain")
    loss = lambda x, w: jnp.sum(jnp.sin(matmul(jnp.cos(x), w, policy)))
    assert products(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, w).jaxpr) == 3
    assert products(jax.make_jaxpr(jax.grad(loss))(x, w).jaxpr) == 2
    residuals = jax.tree.leaves(jax.vjp(lambda x: matmul(x, w, policy), x)[1])
    assert (5, 4) not in [leaf.shape for leaf in residuals]
    residuals = jax.tree.leaves(jax.vjp(lambda w: matmul(x, w, policy), w)[1])
    assert (5, 4) in [leaf.shape for leaf in residuals]
