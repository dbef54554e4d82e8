"""Ring attention over eight devices equals `Einsum` on one, and no device holds a full sequence."""

import contextlib
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec

from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.kernels import Einsum
from jaxnlp.nn.masks import Mask
from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.nn.policy import Policy
from jaxnlp.nn.ring import Ring, _times
from jaxnlp.sharding.mesh import MeshConfig, make_mesh
from jaxnlp.sharding.presets import DDP
from jaxnlp.sharding.rules import ACTIVATIONS
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.step.program import build
from tests import tpu

T = 32
SEGMENTS = jnp.asarray([[1] * 12 + [2] * 20, [1] * 5 + [2] * 5 + [3] * 14 + [0] * 8])
PACKED = {"query_segments_BT": SEGMENTS, "key_segments_BS": SEGMENTS}
MASKS = {
    "causal": Mask(),
    "full": Mask(causal=False),
    "window": Mask(window=6),
    "window of both sides": Mask(causal=False, window=6),
    "segments": Mask(**PACKED),
    "segments, window": Mask(window=9, **PACKED),
    "padding, full": Mask(causal=False, key_segments_BS=(SEGMENTS != 0).astype(jnp.int32)),
    "prefix": Mask(prefix_B=jnp.asarray([19, 3])),
}
MESHES = {
    "sequence": {"sequence": 8},
    "data": {"data": 2, "sequence": 4},
    "tensor": {"data": 2, "sequence": 2, "tensor": 2},
}


@contextlib.contextmanager
def over(sizes, **rules):
    mesh = make_mesh(MeshConfig(**{"data": 1, **sizes}))
    with jax.set_mesh(mesh), axis_rules({**ACTIVATIONS, **rules}):
        yield mesh


def inputs(rng, *, H=4, N=4, B=2, K=8, bias=None):
    shapes = {"q": (B, T, H, K), "k": (B, T, N, K), "v": (B, T, N, K)}
    if bias is not None:
        shapes["bias"] = (bias, H, T, T)
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def both(kernel, arrays, mask, weight, policy=Policy(), **scores):
    """The output, and the gradient of a function of it with respect to each array."""

    def loss(arrays):
        out = kernel(arrays["q"], arrays["k"], arrays["v"], mask, policy=policy, bias=arrays.get("bias"), **scores)
        return (jnp.sin(out) * weight).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return {"out": out, **grads}


def close(actual, wanted, tolerance=1e-5):
    for name in wanted:
        a, b = (np.asarray(x[name], np.float32) for x in (actual, wanted))
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), (name, np.abs(a - b).max() / np.abs(b).max())


def equal(rng, mask, sizes, kernel=None, rules=None, tolerance=1e-5, policy=Policy(), arrays=None, **scores):
    arrays = arrays or inputs(rng)
    real = jnp.ones((2, T)) if mask.key_segments_BS is None else mask.key_segments_BS != 0
    weight = jnp.asarray(rng.standard_normal(arrays["q"].shape), jnp.float32) * real[..., None, None]
    wanted = both(Einsum(), arrays, mask, weight, policy, **scores)
    with over(sizes, **(rules or {})):
        actual = both(kernel or Ring(), arrays, mask, weight, policy, **scores)
    assert all(np.isfinite(x).all() for x in actual.values())
    real = real[..., None, None]
    close({**actual, "out": actual["out"] * real}, {**wanted, "out": wanted["out"] * real}, tolerance)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("mesh", MESHES)
def test_output_and_gradients_are_those_of_one_device(rng, mask, mesh):
    equal(rng, MASKS[mask], MESHES[mesh])


@pytest.mark.parametrize("mesh", MESHES)
def test_grouped_heads_in_pieces(rng, mesh):
    equal(rng, MASKS["segments"], MESHES[mesh], Ring(block=2), arrays=inputs(rng, N=2))


@pytest.mark.parametrize("block", [1, 3, 16])
def test_any_block(rng, block):
    equal(rng, MASKS["segments, window"], MESHES["data"], Ring(block=block))


def test_key_heads_that_are_not_split_where_query_heads_are(rng):
    equal(rng, Mask(), MESHES["tensor"], rules={"kv_heads": None}, arrays=inputs(rng, N=2))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("mask", ["segments", "full"])
def test_bias_and_its_gradient(rng, mask, batch):
    equal(rng, MASKS[mask], MESHES["tensor"], Ring(block=4), arrays=inputs(rng, N=2, bias=batch))


def test_softcap_and_scale_and_bias_together(rng):
    arrays = inputs(rng, N=2, bias=1)
    equal(rng, MASKS["window"], MESHES["data"], arrays={**arrays, "q": 3 * arrays["q"]}, softcap=2.0, scale=1.0)


@pytest.mark.parametrize("mesh", MESHES)
def test_dropout_is_that_of_one_device(rng, mesh):
    arrays, drop = inputs(rng, H=4, N=2, bias=1), (0.3, jax.random.key(3))
    equal(rng, MASKS["segments"], MESHES[mesh], Ring(block=2), arrays=arrays, dropout=drop)


def test_places_beyond_32_bits_are_counted():
    number, factor, more = 0x9ABC_DEF0_1234, 0xFFFF_0003, 0xFFFF_FFF1
    words = (jnp.uint32(number >> 32), jnp.uint32(number & 0xFFFF_FFFF))
    high, low = _times(words, factor, jnp.uint32(more))
    assert (int(high) << 32) + int(low) == (number * factor + more) % 2**64


def test_length_over_two_mesh_axes(rng):
    rules = {"length": ("sequence", "tensor"), "heads": None, "kv_heads": None}
    equal(rng, MASKS["segments"], MESHES["tensor"], rules=rules)


def test_low_precision_operands_stay_close(rng):
    equal(rng, Mask(), MESHES["data"], tolerance=0.02, policy=Policy(matmul_dtype="bfloat16"))


def test_rows_with_nothing_to_attend_to_are_those_of_einsum(rng):
    """They are the mean of all values, never NaN."""
    zeros, arrays = jnp.zeros((2, T), jnp.int32), inputs(rng)
    mask = Mask(query_segments_BT=zeros, key_segments_BS=zeros)
    with over(MESHES["data"]):
        actual = both(Ring(), arrays, mask, 1.0)
    np.testing.assert_allclose(
        actual["out"], jnp.broadcast_to(arrays["v"].mean(1, keepdims=True), (2, T, 4, 8)), atol=1e-6
    )
    assert all(np.isfinite(x).all() for x in actual.values())


def test_keys_of_another_length_and_one_device_are_einsum(rng):
    arrays = inputs(rng)
    last = {**arrays, "q": arrays["q"][:, -1:]}
    mask = Mask(offset=jnp.asarray(T - 1))
    wanted = both(Einsum(), last, mask, 1.0)
    with over({"data": 2, "sequence": 4}):
        close(both(Ring(), last, mask, 1.0), wanted)
    close(both(Ring(), arrays, Mask(), 1.0), both(Einsum(), arrays, Mask(), 1.0), 0.0)


def compiled_step(kernel, sizes, length, mask=Mask(), **shape):
    """The compiled gradient of attention over a split sequence."""
    B, H, K = (shape.get(name, default) for name, default in (("B", 1), ("H", 8), ("K", 128)))
    with over(sizes) as mesh:
        sharding = NamedSharding(mesh, PartitionSpec(None, "sequence"))
        x = jax.ShapeDtypeStruct((B, length, H, K), jnp.float32, sharding=sharding)
        attend = functools.partial(kernel, mask=mask, policy=Policy())
        grad = jax.grad(lambda q, k, v: attend(q, k, v).sum(), (0, 1, 2))
        return jax.jit(grad, out_shardings=(sharding,) * 3).lower(x, x, x).compile()


def permutes(fn, *args):
    """The number of permutes that a function executes, counted in each iteration of its loops."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            inner = sum(map(count, jaxprs_in_params(eqn.params)))
            total += (eqn.primitive.name == "ppermute") + eqn.params.get("length", 1) * inner
        return total

    return count(jax.make_jaxpr(fn)(*args).jaxpr)


@pytest.mark.parametrize(("window", "shares"), [(None, 8), (5, 2), (6, 3), (T, 8)])
def test_shares_sent(rng, window, shares):
    """Keys and values are sent shares - 1 times in each pass; their gradients once more, to their owners."""
    arrays = inputs(rng)
    with over(MESHES["sequence"]):
        attend = functools.partial(Ring(), mask=Mask(window=window), policy=Policy())
        grad = jax.grad(lambda q, k, v: attend(q, k, v).sum(), (0, 1, 2))
        assert permutes(grad, *arrays.values()) == 2 * (shares - 1) + 2 * (shares - 1) + 2 * shares


def test_memory_is_a_tenth_of_dense_attention():
    ring, dense = (compiled_step(kernel, MESHES["sequence"], 16384) for kernel in (Ring(), Einsum()))
    ours, theirs = (compiled.memory_analysis().temp_size_in_bytes for compiled in (ring, dense))
    print(f"temporaries: {ours / 1e9:.3f} GB beside {theirs / 1e9:.3f} GB")
    assert ours * 10 <= theirs
    assert "all-gather" not in ring.as_text() and "all-gather" in dense.as_text()


@pytest.mark.slow
def test_memory_on_a_real_topology():
    compiled = {name: tpu.compiled("tests.nn.compile_ring_tpu", name, "16384") for name in ("ring", "einsum")}
    assert compiled["ring"]["temporaries"] * 10 <= compiled["einsum"]["temporaries"], compiled
    assert compiled["ring"]["gathers"] == 0 and compiled["ring"]["permutes"], compiled


def test_a_length_that_does_not_divide_is_told(rng):
    arrays = {name: x[:, :30] for name, x in inputs(rng).items()}
    wanted = r"Ring\(\): length 30 .*4 devices of mesh axis 'sequence'; make data.seq_len a multiple of 4"
    with over(MESHES["data"]), pytest.raises(UserError, match=wanted):
        Ring()(*arrays.values(), Mask(), policy=Policy())


def test_a_config_of_a_ring_is_saved_and_loaded():
    e = Experiment(model=GPTConfig(attention=Ring(block=256)))
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(e)))) == e


def test_a_sequence_that_does_not_divide_is_told_before_any_compile():
    e = Experiment(model=GPTConfig(attention=Ring(), vocab_size=32), data=DataConfig(seq_len=30, batch_size=8))
    e.sharding = DDP.over(data=2, sequence=4)
    with pytest.raises(FieldError, match=r"data.seq_len=30: does not divide over sequence=4 devices; use 32"):
        build(e, jax.devices())


def test_what_it_cannot_do_is_told():
    with pytest.raises(FieldError, match="block"):
        Ring(block=0).check()
