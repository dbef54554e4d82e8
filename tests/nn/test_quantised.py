"""Block-wise int8 and NF4 equal the paper's definition in NumPy; residuals of quantised kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.nn.partitioning import axis_rules
from jaxnlp.nn.quantised import BITS, NF4, Blocks, Quantised, block_size, dequantised, quantise
from jaxnlp.nn.remat import all_but_gathered

# Dettmers et al. 2023, appendix E.
APPENDIX = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
SHAPES = {"(embed, mlp)": ((32, 6), -2, 8), "(heads, kv, embed)": ((2, 16, 5), -2, 16), "last axis": ((3, 12), -1, 4)}


def reference(x: np.ndarray, axis: int, size: int, kind: str) -> np.ndarray:
    """Quantisation and dequantisation block by block (equations 1 and 2, and appendix E's levels)."""
    rows = np.moveaxis(x.astype(np.float64), axis, -1)
    out = np.empty_like(rows)
    for place in np.ndindex(*rows.shape[:-1]):
        for start in range(0, rows.shape[-1], size):
            block = rows[place][start : start + size]
            c = np.abs(block).max()
            if c == 0:
                out[place][start : start + size] = 0
            elif kind == "int8":
                out[place][start : start + size] = np.round(127 / c * block) * c / 127
            else:
                nearest = [min(APPENDIX, key=lambda level, number=number: abs(level - number)) for number in block / c]
                out[place][start : start + size] = c * np.array(nearest)
    return np.moveaxis(out, -1, axis)


def how(kind: str, shape: tuple[int, ...], axis: int, size: int) -> Blocks:
    return Blocks(kind, axis, size, "float32", "float32", (None,) * len(shape))


def test_levels_are_the_papers():
    np.testing.assert_allclose(NF4, APPENDIX, atol=2e-7)


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("name", SHAPES)
def test_there_and_back_is_the_papers_definition(kind, name):
    shape, axis, size = SHAPES[name]
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)  # two layers
    x[0, 0] = 0.0  # blocks of zeros
    quantised = quantise(jnp.asarray(x), how(kind, shape, axis, size))
    wanted = reference(x, axis, size, kind)
    np.testing.assert_allclose(quantised.floats(), wanted, atol=1e-6 * np.abs(x).max())
    layer = jax.tree.map(lambda leaf: leaf[1], quantised)  # as in a scan
    np.testing.assert_array_equal(layer.unbox(), quantised.floats()[1])
    assert quantised.codes.nbytes == x.size * BITS[kind] // 8
    assert quantised.scales.nbytes == 4 * x.size // size


def test_again_is_the_same_and_bfloat16_is_rounded_once():
    shape, axis, size = SHAPES["(embed, mlp)"]
    x = jax.random.normal(jax.random.key(0), shape)
    for kind in BITS:
        quantised = quantise(x, how(kind, shape, axis, size))
        again = quantise(quantised.floats(), quantised.how)
        np.testing.assert_array_equal(again.codes, quantised.codes)
        narrow = Quantised(
            quantised.codes, quantised.scales, Blocks(kind, axis, size, "float32", "bfloat16", (None, None))
        )
        np.testing.assert_array_equal(narrow.unbox(), quantised.floats().astype(jnp.bfloat16))
        assert dequantised({"a": {"kernel": quantised}, "b": x})["a"]["kernel"].dtype == jnp.float32


def test_sizes_of_blocks():
    assert [block_size(count, 64) for count in (1600, 64, 96, 100, 16)] == [64, 64, 48, 50, 16]
    assert [block_size(count, 64) for count in (74, 17, 4)] == [None, None, None]
    assert block_size(200, 40) == 40
    assert block_size(12, 4) == 4


def test_a_policy_that_keeps_all_but_what_is_gathered_keeps_no_floats_of_codes():
    kernel = quantise(jax.random.normal(jax.random.key(0), (16, 8)), how("nf4", (16, 8), -2, 8))
    saved = {}
    for name, policy in (("all", jax.checkpoint_policies.everything_saveable), ("ours", all_but_gathered)):
        layer = jax.checkpoint(lambda x, kernel: jnp.sum(jnp.tanh(x @ kernel.unbox())), policy=policy)
        pull = lambda x, kernel, layer=layer: jax.tree.leaves(jax.vjp(lambda x: layer(x, kernel), x)[1])
        shapes = jax.make_jaxpr(pull)(jnp.ones((3, 16)), kernel).out_avals
        saved[name] = {leaf.shape for leaf in shapes if leaf.dtype == jnp.float32}
    assert (16, 8) in saved["all"]
    assert (16, 8) not in saved["ours"]


def test_shares_of_a_kernel_are_made_floats_where_they_lie():
    """No codes are communicated: blocks and their scales are sharded together, on any axis."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"))
    place = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    for kind in BITS:
        blocks = Blocks(kind, -2, 8, "float32", "float32", ("embed", "mlp"))
        shapes = jax.eval_shape(lambda x, blocks=blocks: quantise(x, blocks), jnp.zeros((64, 6)))
        for split in (("fsdp", "tensor"), (None, "tensor"), ("tensor", None)):
            floats = jax.jit(lambda x: x.floats(), in_shardings=place(*split), out_shardings=place(*split))
            text = str(floats.lower(shapes).compile().as_text())
            assert not any(f"{op}(" in text for op in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))


def test_what_is_gathered_is_codes():
    mesh = jax.make_mesh((8,), ("fsdp",))
    split, whole = {"embed": "fsdp", "mlp": None}, {"embed": None, "mlp": None}
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    blocks = Blocks("nf4", -2, 8, "float32", "float32", ("embed", "mlp"))
    shapes = jax.eval_shape(lambda x: quantise(x, blocks), jnp.zeros((64, 6)))
    with jax.set_mesh(mesh), axis_rules({}, whole, split):
        unbox = jax.jit(lambda x: x.unbox(), in_shardings=place, out_shardings=everywhere)
        text = str(unbox.lower(shapes).compile().as_text())
    gathered = [line.split("=")[1].split()[0] for line in text.splitlines() if " all-gather(" in line]
    assert sorted(shape.split("[")[0] for shape in gathered) == ["f32", "u8"], gathered
    assert any(shape.startswith("u8[32,6]") for shape in gathered)
    assert any(shape.startswith("f32[8,6]") for shape in gathered)
