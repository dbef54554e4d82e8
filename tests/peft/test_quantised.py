"""PEFT methods on a base quantised to 8 or 4 bits, on unmodified models."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.quantised import dequantised, is_quantised
from jaxnlp.peft.bitfit import BitFit
from jaxnlp.peft.full import Full
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.tuning import attach
from jaxnlp.sharding.functional import init_params, make_apply, make_capture
from jaxnlp.trees import get_at, merge

from .test_properties import B, D, T, V, method_for, model, moved

KINDS = ("int8", "nf4")
NAMES = ("gpt", "gpt scanned", "foreign", "foreign scanned", "t5")


@functools.cache
def tuned(name: str, method: str, kind: str):
    """(tuning, quantised base, tuned parameters, apply)."""
    module, inputs, base = model(name)
    tuning = attach(dataclasses.replace(method_for(name, method), base_dtype=kind), module, *inputs)
    return tuning, tuning.frozen(base), moved(tuning.init(jax.random.key(1), base)), tuning.apply(make_apply(module))


def leaves(tree):
    return jax.tree.leaves(tree, is_leaf=is_quantised)


def saved_residuals(name: str, method: str, kind: str):
    """The residuals of the derivative with respect to the tuned parameters."""
    _, frozen, now, apply = tuned(name, method, kind)
    _, inputs, _ = model(name)
    loss = lambda tuned, frozen: jnp.mean(jnp.square(apply(merge(frozen, tuned), *inputs)))
    pull = lambda tuned, frozen: jax.tree.leaves(jax.vjp(lambda t: loss(t, frozen), tuned)[1])
    return jax.make_jaxpr(pull)(now, frozen).out_avals


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "method"), [*((name, "lora everywhere") for name in NAMES), ("gpt scanned", "dora"), ("gpt", "ia3")]
)
def test_merged_equals_live_and_is_floats(name, method, kind):
    module, inputs, base = model(name)
    tuning, frozen, now, apply = tuned(name, method, kind)
    live = jax.jit(apply)(merge(frozen, now), *inputs)
    merged = tuning.merge(frozen, now)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a.shape}"), merged, base)
    np.testing.assert_allclose(jax.jit(make_apply(module))(merged, *inputs), live, rtol=1e-4, atol=1e-5)
    exact = jax.jit(apply)(merge(base, now), *inputs)
    assert 0 < float(jnp.max(jnp.abs(live - exact))) < {"int8": 0.05, "nf4": 0.5}[kind] * float(jnp.max(jnp.abs(exact)))


@pytest.mark.parametrize("method", ["houlsby", "bitfit"])
def test_other_methods_run_on_it_as_on_its_floats(method):
    module, inputs, base = model("gpt scanned")
    tuning, frozen, now, apply = tuned("gpt scanned", method, "nf4")
    wanted = attach(method_for("gpt scanned", method), module, *inputs).apply(make_apply(module))
    floats = dequantised(frozen)
    assert sum(map(is_quantised, leaves(frozen))) == 6
    np.testing.assert_allclose(apply(merge(frozen, now), *inputs), wanted(merge(floats, now), *inputs), atol=1e-5)


def test_kernels_of_linear_maps_are_quantised_and_nothing_else():
    for name in NAMES:
        tuning, frozen, _, _ = tuned(name, "lora everywhere", "nf4")
        assert {path[-1] for path in tuning.blocks} == {"kernel"}
        paths = jax.tree_util.tree_leaves_with_path(frozen, is_leaf=is_quantised)
        floats = [path for path, x in paths if not is_quantised(x)]
        assert {str(path[-1].key) for path in floats if path[0].key != "head"} <= {"embedding", "bias", "scale"}
        lines = [line for line in tuning.report().splitlines() if "nf4 in blocks of" in line]
        assert len(lines) == 1 and f"{len(tuning.blocks)} kernels" in lines[0]


def test_scanned_layers_are_quantised_as_unrolled_ones():
    _, inputs, base = model("gpt")
    together = lambda tree: {
        "blocks": jax.tree.map(lambda *x: jnp.stack(x), tree["block_0"], tree["block_1"]),
        **{name: x for name, x in tree.items() if not name.startswith("block_")},
    }
    for kind in KINDS:
        tuning, frozen, now, apply = tuned("gpt", "lora everywhere", kind)
        stacked, _, _, scanned = tuned("gpt scanned", "lora everywhere", kind)
        quantised = stacked.frozen(together(base))
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(quantised), jax.tree.leaves(together(frozen)))
        wanted = apply(merge(frozen, now), *inputs)
        np.testing.assert_allclose(scanned(merge(quantised, together(now)), *inputs), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gpt", "foreign", "foreign scanned"])  # without remat
def test_the_derivative_keeps_codes_and_never_a_kernel_of_floats(name, kind):
    kernels = {x.shape for path, x in jax.tree_util.tree_leaves_with_path(model(name)[2]) if path[-1].key == "kernel"}
    kernels -= {(D, V), (V, D)}  # of a table
    floats = [x for x in saved_residuals(name, "houlsby", kind) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert not [x for x in floats if x.shape in kernels]
    assert any(x.dtype in (jnp.uint8, jnp.int8) for x in saved_residuals(name, "houlsby", kind))
    module, inputs, base = model(name)
    plain = attach(method_for(name, "houlsby"), module, *inputs)
    start, apply = plain.init(jax.random.key(1), base), plain.apply(make_apply(module))
    pull = lambda t, b: jax.tree.leaves(jax.vjp(lambda t: jnp.sum(apply(merge(b, t), *inputs)), t)[1])
    assert [
        x for x in jax.make_jaxpr(pull)(start, base).out_avals if x.shape in kernels
    ]  # the control: a float base has them


@pytest.mark.parametrize("name", ["gpt scanned", "foreign scanned"])
def test_gradients_are_those_on_its_floats_and_it_stays_to_the_bit(name):
    module, inputs, base = model(name)
    tuning, frozen, now, apply = tuned(name, "lora everywhere", "nf4")
    before = jax.tree.map(np.array, frozen)
    floats = dequantised(frozen)
    loss = lambda tuned, base: jnp.mean(jnp.square(apply(merge(base, tuned), *inputs)))
    step = jax.jit(jax.value_and_grad(loss))
    _, wanted = step(now, floats)
    scale, losses = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(wanted)), []
    for i in range(3):
        value, grads = step(now, frozen)
        if i == 0:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale), grads, wanted)
        assert jax.tree.structure(grads) == jax.tree.structure(now)
        now = jax.tree.map(lambda x, g: x - 0.02 * g, now, grads)
        losses.append(float(value))
    assert losses[2] < losses[1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, frozen), before)


class Odd(nn.Module):
    """Has an `lm_head`, a layer of `inputs` features, one with randomness and a sown value, and a shared one."""

    inputs: int = D

    @nn.compact
    def __call__(self, tokens_BT, deterministic: bool = True):
        x = nn.Dense(D, name="first")(nn.Embed(V, self.inputs, name="embed")(tokens_BT))
        shared = nn.Dense(D, dtype=jnp.bfloat16, name="shared")
        return nn.Dense(V, name="lm_head")(shared(nn.gelu(shared(Noisy(name="noisy")(x)))))


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (D, D))
        self.sow("intermediates", "seen", x)
        return x @ kernel + (jax.random.normal(self.make_rng("dropout"), x.shape) if self.has_rng("dropout") else 0.0)


def test_axes_without_blocks_are_told_and_can_be_kept():
    tokens = jnp.ones((B, T), jnp.int32)
    lora = LoRA(targets=("shared",), rank=2, base_dtype="nf4")
    with pytest.raises(FieldError, match="peft.base_block=64: first/kernel has 17 inputs, which no even"):
        attach(lora, Odd(17), tokens)
    left = attach(dataclasses.replace(lora, skip_modules=("first", "lm_head")), Odd(17), tokens)
    assert set(left.blocks) == {("shared", "kernel"), ("noisy", "kernel")}
    assert left.blocks["shared", "kernel"].compute_dtype == "bfloat16"


def test_layers_that_draw_and_keep_within_their_call():
    tokens, module = jnp.ones((B, T), jnp.int32), Odd()
    tuning = attach(LoRA(targets=("shared",), rank=2, base_dtype="nf4"), module, tokens)
    base = init_params(module, jax.random.key(0), tokens)
    frozen, now = tuning.frozen(base), moved(tuning.init(jax.random.key(1), base))
    apply = tuning.apply(make_apply(module))
    loss = lambda now, base: jnp.mean(jnp.square(apply(merge(base, now), tokens, key=jax.random.key(2))))
    actual, wanted = (jax.jit(jax.grad(loss))(now, tree) for tree in (frozen, dequantised(frozen)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, wanted)
    seen = jax.jit(tuning.apply(make_capture(module)))(merge(frozen, now), tokens)[1]
    assert seen["noisy/seen"].shape == (B, T, D)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LoRA(base_dtype="nf5"), "peft.base_dtype='nf5': expected one of .*int8, nf4, or None; did you mean 'nf4'"),
        (Full(base_dtype="nf4"), r"peft.base_dtype='nf4': Full\(\) trains blocks/attention/query/kernel itself"),
        (BitFit(terms=("*/up/*",), base_dtype="int8"), r"BitFit\(\) trains blocks/mlp/up/kernel itself"),
        (LoRA(base_dtype="nf4", base_block=7), "peft.base_block=7: expected an even number"),
        (LoRA(base_dtype="nf4", skip_modules=("qery",)), "peft.skip_modules='qery': no module .* did you mean 'query'"),
        (IA3(base_dtype="int8", skip_modules=("*",)), "this model has no linear map to quantise"),
    ],
)
def test_configs_that_cannot_work(method, message):
    module, inputs, _ = model("gpt scanned")
    with pytest.raises(UserError, match=message):
        attach(method, module, *inputs)


def test_what_is_trained_whole_is_in_floats():
    module, inputs, base = model("gpt scanned")
    tuning = attach(Prefix(length=2, modules_to_save=("*/query/kernel",), base_dtype="nf4"), module, *inputs)
    assert len(tuning.blocks) == 5
    frozen, start = tuning.frozen(base), tuning.init(jax.random.key(0), base)
    np.testing.assert_array_equal(
        get_at(start, ("blocks", "attention", "query", "kernel")), base["blocks"]["attention"]["query"]["kernel"]
    )
    assert get_at(frozen, ("blocks", "attention", "query", "kernel")) is None
