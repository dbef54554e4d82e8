"""Every PEFT method on unmodified models: starts at the base, merged equals live, only tuned parameters change."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.t5 import T5Config
from jaxnlp.peft.adapter import PFEIFFER, Adapter
from jaxnlp.peft.bitfit import BitFit
from jaxnlp.peft.full import Full
from jaxnlp.peft.ia3 import IA3
from jaxnlp.peft.lora import LoRA
from jaxnlp.peft.prefix import Prefix
from jaxnlp.peft.prompt import Prompt, PTuning
from jaxnlp.peft.tuning import attach
from jaxnlp.sharding.functional import init_params, make_apply
from jaxnlp.trees import merge

B, T, V, D = 2, 6, 32, 16
KERNELS = ("query", "key", "value", "out", "up", "down")
METHODS = {
    "lora": LoRA(rank=2),
    "lora everywhere": LoRA(targets=(*KERNELS, "embed"), rank=2, alpha=3.0),
    "rslora": LoRA(rank=4, use_rslora=True, init="gaussian"),
    "dora": LoRA(targets=KERNELS, rank=2, use_dora=True),
    "houlsby": Adapter(bottleneck=4),
    "pfeiffer": Adapter(targets=PFEIFFER, bottleneck=4, activation="relu"),
    "ia3": IA3(),
    "bitfit": BitFit(),
    "full": Full(frozen=("embed/*",)),
}
MERGED = ("lora", "lora everywhere", "rslora", "dora", "ia3", "bitfit", "full")


class Foreign(nn.Module):
    """A model that is not of this package: Flax's layers, each called once, without axis names."""

    scanned: bool = False

    @nn.compact
    def __call__(self, tokens_BT, deterministic: bool = True):
        table = nn.Embed(V, D, name="embed")
        x = table(tokens_BT)
        if self.scanned:
            body = nn.scan(ForeignBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
            x = body(name="blocks")(x, None)[0]
        else:
            for i in range(2):
                x = ForeignBlock(name=f"block_{i}")(x, None)[0]
        return table.attend(x)


class ForeignBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        query, key, value = (nn.DenseGeneral((2, D // 2), name=name)(x) for name in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        x = x + nn.DenseGeneral(D, axis=(-2, -1), name="out")(mixed)
        return x + ForeignMLP(name="mlp")(x), None


class ForeignMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(D, name="down")(nn.gelu(nn.Dense(2 * D, name="up")(x)))


def gpt(**changes):
    return GPTConfig(vocab_size=V, max_length=16, num_layers=2, num_heads=2, embed_dim=D, **changes)


MODELS = {
    "gpt": gpt(),
    "gpt scanned": gpt(scan_layers=True, remat="full"),
    "foreign": Foreign(),
    "foreign scanned": Foreign(scanned=True),
    "t5": T5Config(vocab_size=V, num_layers=1, num_heads=2, embed_dim=D, head_dim=8, mlp_dim=2 * D),
}


@functools.cache
def model(name: str):
    """(module, its inputs, base parameters)."""
    config = MODELS[name]
    module = config if isinstance(config, nn.Module) else config.build()
    shapes = (jnp.zeros((B, T), jnp.int32),) if isinstance(config, nn.Module) else config.example_inputs(B, T)
    inputs = tuple(jax.random.randint(jax.random.key(i), x.shape, 1, V) for i, x in enumerate(shapes))
    return module, inputs, init_params(module, jax.random.key(0), *inputs)


@functools.cache
def of_the_base(name: str) -> jax.Array:
    """The outputs of the base."""
    module, inputs, base = model(name)
    return jax.jit(make_apply(module))(base, *inputs)


def moved(tree, by=0.1):
    """The tree with noise added to every leaf, so that nothing is exactly zero or one."""
    random = np.random.default_rng(5)
    return jax.tree.map(lambda x: x + (by * random.standard_normal(x.shape)).astype(x.dtype), tree)


def method_for(name: str, method: str):
    """The method; in a foreign model, attention is not a module, so its output map is the target."""
    if name.startswith("foreign") and method == "houlsby":
        return dataclasses.replace(METHODS[method], targets=("out", "mlp"))
    return METHODS[method]


@functools.cache
def tuned(name: str, method: str):
    module, inputs, base = model(name)
    tuning = attach(method_for(name, method), module, *inputs)
    return tuning, jax.jit(tuning.init)(jax.random.key(1), base), tuning.apply(make_apply(module))


NAMES = [(name, method) for name in ("gpt", "gpt scanned", "foreign", "foreign scanned") for method in METHODS]


@pytest.mark.parametrize(("name", "method"), NAMES)
def test_identity_at_the_start_and_merged_equals_live(name, method):
    _, inputs, base = model(name)
    tuning, start, apply = tuned(name, method)
    wanted, run = of_the_base(name), jax.jit(apply)
    np.testing.assert_allclose(run(merge(base, start), *inputs), wanted, rtol=1e-5, atol=1e-6)
    now = moved(start)
    live = run(merge(base, now), *inputs)
    assert float(jnp.max(jnp.abs(live - wanted))) > 1e-3
    if method in MERGED:
        merged = jax.jit(tuning.merge)(base, now)
        assert jax.tree.structure(merged) == jax.tree.structure(base)
        np.testing.assert_allclose(run(merged, *inputs), live, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(UserError, match="cannot be merged"):
            tuning.merge(base, now)


@pytest.mark.parametrize("method", ["lora everywhere", "houlsby", "ia3"])
def test_an_encoder_decoder_is_tuned_in_all_its_parts(method):
    module, inputs, base = model("t5")
    chosen = METHODS[method]
    if method == "houlsby":
        chosen = dataclasses.replace(chosen, targets=("attention", "cross_attention", "mlp"))
    tuning = attach(chosen, module, *inputs)
    assert {path[0] for path in tuning.leaves} >= {"encoder", "decoder"}
    start = tuning.init(jax.random.key(1), base)
    run = jax.jit(tuning.apply(make_apply(module)))
    wanted = run(base, *inputs)
    np.testing.assert_allclose(run(merge(base, start), *inputs), wanted, rtol=1e-5, atol=1e-6)
    assert float(jnp.max(jnp.abs(run(merge(base, moved(start)), *inputs) - wanted))) > 1e-3


def test_scanned_layers_are_tuned_as_unrolled_ones():
    _, inputs, base = model("gpt")
    stack = lambda *x: jnp.stack(x)
    together = lambda tree: {
        "blocks": jax.tree.map(stack, tree["block_0"], tree["block_1"]),
        **{name: x for name, x in tree.items() if not name.startswith("block_")},
    }
    for method in ("lora everywhere", "dora", "houlsby", "ia3"):
        tuning, start, apply = tuned("gpt", method)
        _, _, scanned = tuned("gpt scanned", method)
        now = moved(start)
        wanted = apply(merge(base, now), *inputs)
        np.testing.assert_allclose(scanned(merge(together(base), together(now)), *inputs), wanted, rtol=1e-4, atol=1e-5)


def test_only_tuned_parameters_have_gradients_and_the_base_stays_to_the_bit():
    module, inputs, base = model("gpt scanned")
    tuning, start, apply = tuned("gpt scanned", "lora everywhere")
    before = jax.tree.map(np.array, base)
    loss = lambda tuned, base: jnp.mean(jnp.square(apply(merge(base, tuned), *inputs)))
    grads = jax.jit(jax.grad(loss))(moved(start), base)
    assert jax.tree.structure(grads) == jax.tree.structure(start)
    assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(grads))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, base), before)


def test_unmerged_is_the_base_again():
    module, _, base = model("gpt")
    for method in ("lora everywhere", "ia3"):
        tuning, start, _ = tuned("gpt", method)
        now = moved(start)
        back = tuning.unmerge(tuning.merge(base, now), now)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), back, base)


def test_a_scale_of_zero_has_no_way_back():
    for name in ("gpt", "gpt scanned"):
        _, _, base = model(name)
        tuning, start, _ = tuned(name, "ia3")
        zero = jax.tree.map(lambda x: x.at[..., 0].set(0.0), start)
        with pytest.raises(UserError, match=r"IA3\(\): block.*/ia3_out has \d scales of 0, .* keep the base"):
            tuning.unmerge(tuning.merge(base, zero), zero)


def test_counts_are_those_of_the_papers():
    d, m, r, layers = D, 4, 2, 2
    assert tuned("gpt scanned", "houlsby")[0].counts()[0] == layers * 2 * (2 * m * d + d + m)
    assert tuned("gpt", "pfeiffer")[0].counts()[0] == layers * (2 * m * d + d + m)
    assert tuned("gpt", "lora")[0].counts()[0] == layers * 2 * r * (d + d)
    assert tuned("gpt", "ia3")[0].counts()[0] == layers * (2 * d + 4 * d)
    tuning, start, _ = tuned("gpt scanned", "dora")
    assert tuning.counts()[0] == sum(x.size for x in jax.tree.leaves(start))
    assert "modules: blocks/attention/query, " in tuning.report()


def test_dropout_drops_what_lora_reads_and_nothing_else():
    module, inputs, base = model("gpt")
    for method in (LoRA(rank=2, dropout_rate=0.5), LoRA(rank=2, dropout_rate=0.5, use_dora=True)):
        tuning = attach(method, module, *inputs)
        now = moved(tuning.init(jax.random.key(1), base))
        apply, params = jax.jit(tuning.apply(make_apply(module))), merge(base, now)
        first, second = (apply(params, *inputs, key=jax.random.key(seed)) for seed in (0, 1))
        assert float(jnp.max(jnp.abs(first - second))) > 1e-4
        if not method.use_dora:
            start = tuning.init(jax.random.key(1), base)
            plain = apply(merge(base, start), *inputs, key=jax.random.key(0))
            np.testing.assert_allclose(plain, apply(base, *inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LoRA(targets=("qery",)), "peft.targets='qery': no module .* did you mean 'query'"),
        (LoRA(targets=("mlp",)), "peft.targets='mlp': blocks/mlp .* is not a linear map or a table of embeddings"),
        (LoRA(targets=("embed",), use_dora=True), "peft.targets='embed': embed .* is not a linear map"),
        (LoRA(rank=40), "peft.rank=40: blocks/attention/query is 16 x 16; expected no more than its shorter side"),
        (LoRA(modules_to_save=("hed/*",)), "peft.modules_to_save='hed/\\*': the model has no such parameter"),
        (Adapter(targets=("atention",)), "peft.targets='atention': no module"),
        (IA3(outputs=("norm",)), "peft.outputs='norm': norm .* is not a linear map"),
        (BitFit(terms=("*/biass",)), "peft.terms='\\*/biass': the model has no such parameter; did you mean"),
        (Full(frozen=("*",)), "freezes every parameter"),
    ],
)
def test_patterns_that_match_nothing_or_what_cannot_be_served(method, message):
    module, inputs, _ = model("gpt scanned")
    with pytest.raises(UserError, match=message):
        attach(method, module, *inputs)


@pytest.mark.parametrize(
    ("method", "field"),
    [
        (LoRA(rank=0), "rank"),
        (LoRA(alpha=0.0), "alpha"),
        (LoRA(dropout_rate=1.0), "dropout_rate"),
        (LoRA(init="orthogonal"), "init"),
        (LoRA(lora_plus_ratio=0.0), "lora_plus_ratio"),
        (LoRA(targets=()), "targets"),
        (Adapter(bottleneck=0), "bottleneck"),
        (Adapter(activation="gel"), "activation"),
        (IA3(outputs=(), inputs=()), "outputs"),
        (BitFit(terms=()), "terms"),
    ],
)
def test_configs_that_cannot_work(method, field):
    with pytest.raises(FieldError, match=f"^{field}="):
        method.check()


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        (LoRA(), {"rank": 2.5}, "rank=2.5: expected int, got float"),
        (LoRA(), {"rank": "8"}, "rank='8': expected int, got str"),
        (LoRA(), {"targets": "query"}, r"targets='query': expected tuple\[str, ...\], got str; write \('query',\)"),
        (
            LoRA(),
            {"modules_to_save": "norm/*"},
            r"modules_to_save='norm/\*': expected .*, got str; write \('norm/\*',\)",
        ),
        (Adapter(), {"bottleneck": 4.0}, "bottleneck=4.0: expected int, got float"),
        (IA3(), {"outputs": "key"}, r"outputs='key': expected .*; write \('key',\)"),
        (BitFit(), {"terms": "bias"}, r"terms='bias': expected .*; write \('bias',\)"),
        (Full(), {"frozen": "embed/*"}, r"frozen='embed/\*': expected .*; write \('embed/\*',\)"),
        (Prefix(), {"length": "8"}, "length='8': expected int, got str"),
        (Prompt(), {"length": 8.5}, "length=8.5: expected int, got float"),
        (PTuning(), {"hidden_dim": "8"}, r"hidden_dim='8': expected int \| None, got str"),
    ],
)
def test_a_field_of_another_type_is_told_also_without_a_run(method, changes, message):
    module, inputs, _ = model("gpt")
    with pytest.raises(FieldError, match=f"^{message}$"):
        attach(dataclasses.replace(method, **changes), module, *inputs)
