"""Attention scores equal their papers' formulas; cross-attention and its weights equal PyTorch's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.nn import attention, kernels, positions
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.policy import Policy

F32 = Policy()


def sequences(rng, T=5, S=7, D=6, E=6):
    return [jnp.asarray(rng.standard_normal((2, n, d)), jnp.float32) for n, d in ((T, D), (S, E))]


def init(module, *args):
    params = nn.meta.unbox(module.init(jax.random.key(0), *args))
    return jax.tree.map(lambda x: x + 0.1, params)  # biases that are not zero


@pytest.mark.parametrize("score", [attention.Dot(), attention.ScaledDot()])
def test_dot_scores(rng, score):
    q, k = sequences(rng)
    actual = score.build(F32).apply({}, q, k)
    wanted = np.einsum("btd,bsd->bts", q, k) / (6**0.5 if isinstance(score, attention.ScaledDot) else 1)
    np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_general_score(rng):
    q, k = sequences(rng, D=4, E=6)
    module = attention.General().build(F32)
    params = init(module, q, k)
    wanted = np.einsum("btd,de,bse->bts", q, params["params"]["query"]["kernel"], k)
    np.testing.assert_allclose(module.apply(params, q, k), wanted, atol=1e-5)


def test_additive_score(rng):
    q, k = sequences(rng, D=4, E=6)
    module = attention.Additive(hidden_dim=3).build(F32)
    params = init(module, q, k)
    p = params["params"]
    for b, t, s in [(0, 0, 0), (1, 4, 6), (1, 2, 3)]:
        hidden = np.tanh(q[b, t] @ p["query"]["kernel"] + p["query"]["bias"] + k[b, s] @ p["key"]["kernel"])
        assert float(module.apply(params, q, k)[b, t, s]) == pytest.approx(float(hidden @ p["out"]), abs=1e-5)


def test_a_dot_product_of_unequal_sizes_says_what_to_use(rng):
    with pytest.raises(UserError, match=r"4 features and keys 6.*General"):
        attention.Dot().build(F32).apply({}, *sequences(rng, D=4, E=6))


@pytest.mark.parametrize("score", [attention.Dot(), attention.General(), attention.Additive()])
def test_attention_mixes_real_values_only(rng, score):
    q, k = sequences(rng)
    layer = attention.Attention(score, F32)
    params = init(layer, q, k, k)
    mask = Mask(causal=False, key_segments_BS=jnp.asarray([[1] * 7, [1] * 4 + [0] * 3]))
    context, weights = layer.apply(params, q, k, k, mask)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert np.abs(np.asarray(weights[1, :, 4:])).max() == 0
    short, _ = layer.apply(params, q[1:], k[1:, :4], k[1:, :4])
    np.testing.assert_allclose(context[1:], short, atol=1e-6)
    np.testing.assert_allclose(context, np.einsum("bts,bsd->btd", weights, k), atol=1e-6)


def layer(kernel=kernels.Einsum(), **kw):
    sizes = {"num_heads": 4, "num_kv_heads": 4, "head_dim": 3, **kw}
    return attention.MultiHeadAttention(implementation=kernel, positions=positions.NoPositions(), policy=F32, **sizes)


def test_cross_attention_and_its_weights_equal_torch(rng):
    torch = pytest.importorskip("torch")
    q, memory = sequences(rng, D=12, E=12)
    padding = np.asarray([[False] * 7, [False] * 4 + [True] * 3])
    theirs = torch.nn.MultiheadAttention(12, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_bias.normal_()
        theirs.out_proj.bias.normal_()
        tensor = lambda x: torch.from_numpy(np.array(x))
        wanted, weights = theirs(
            tensor(q),
            tensor(memory),
            tensor(memory),
            key_padding_mask=tensor(padding),
            average_attn_weights=False,
        )
    kernels_, biases = (np.split(x.detach().numpy(), 3) for x in (theirs.in_proj_weight, theirs.in_proj_bias))
    params = {
        name: {"kernel": w.T.reshape(12, 4, 3), "bias": b.reshape(4, 3)}
        for name, w, b in zip(("query", "key", "value"), kernels_, biases, strict=True)
    }
    out = theirs.out_proj
    params["out"] = {"kernel": out.weight.detach().numpy().T.reshape(4, 3, 12), "bias": out.bias.detach().numpy()}
    module = layer()

    def cross(module, q, memory, mask):
        return module(q, mask, keys_values=module.keys_values(memory))

    mask = Mask(causal=False, key_segments_BS=jnp.asarray(~padding, jnp.int32))
    (outputs, _), seen = nn.apply(cross, module, mutable=["intermediates"])({"params": params}, q, memory, mask)
    np.testing.assert_allclose(outputs, wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(seen["intermediates"][attention.WEIGHTS][0], weights.numpy(), atol=1e-6)


def test_weights_are_computed_only_on_request(rng):
    x, _ = sequences(rng, D=12)
    module = layer(num_kv_heads=2)
    params = init(module, x, Mask())
    assert set(params) == {"params"}
    program = str(jax.make_jaxpr(lambda p: module.apply(p, x, Mask()))(params))
    with_weights = str(jax.make_jaxpr(lambda p: module.apply(p, x, Mask(), mutable=["intermediates"]))(params))
    assert program.count("dot_general") < with_weights.count("dot_general")
    _, seen = module.apply(params, x, Mask(), mutable=["intermediates"])
    weights = seen["intermediates"][attention.WEIGHTS][0]
    assert weights.shape == (2, 4, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    assert np.abs(np.triu(np.asarray(weights), 1)).max() == 0
