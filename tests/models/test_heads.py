"""Properties of fine-tuned models; parity with transformers is in `test_heads_parity.py`."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp import config as configs
from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.bert import BertConfig, roberta
from jaxnlp.models.elmo import ElmoConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import (
    Head,
    ModelWithHead,
    MultipleChoiceHead,
    RegressionHead,
    SequenceClassificationHead,
    SpanExtractionHead,
    TokenClassificationHead,
)
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.models.t5 import T5Config
from jaxnlp.sharding.functional import abstract_params, init_params, make_apply
from jaxnlp.sharding.rules import REPLICATED

B, C, T, N, V = 3, 2, 7, 5, 33
SIZES = {"vocab_size": V, "num_layers": 1, "num_heads": 2, "embed_dim": 8}
TRUNKS = {
    "bert": BertConfig(**SIZES, heads=(), max_length=16, dropout_rate=0.0),
    "bert with pooler": BertConfig(**SIZES, heads=("pooler",), max_length=16, dropout_rate=0.0),
    "roberta": roberta(**SIZES, heads=(), max_length=16, dropout_rate=0.0),
    "gpt": GPTConfig(**SIZES, max_length=16),
    "gpt post-norm": GPTConfig(**SIZES, max_length=16, norm_position="post", scan_layers=True),
    "llama": LlamaConfig(**SIZES, num_kv_heads=1, mlp_dim=12),
}
HEADS = {  # and the shape of its logits
    "classes": (SequenceClassificationHead(num_classes=N), (B, N)),
    "number": (RegressionHead(), (B,)),
    "choice": (MultipleChoiceHead(), (B, C)),
    "tokens": (TokenClassificationHead(num_classes=N), (B, T, N)),
    "span": (SpanExtractionHead(), (B, T, 2)),
}
PAIRS = [(t, h) for t in ("bert", "gpt") for h in HEADS]
PAIRS += [(t, h) for t in ("roberta", "gpt post-norm", "llama") for h in ("classes", "tokens")]
PAIRS += [("bert with pooler", "classes")]


def built(trunk, head):
    config = ModelWithHead(body=TRUNKS[trunk], head=HEADS[head][0])
    configs.check(config)
    zeros = [jnp.zeros(x.shape, x.dtype) for x in config.example_inputs(1, 4)]
    params = jax.jit(lambda: init_params(config.build(), jax.random.key(0), *zeros))()
    return config, jax.tree.map(lambda x: 5 * x if x.ndim > 1 else x, params), jax.jit(make_apply(config.build()))


def example(config, rng, length=T):
    """Tokens of random lengths, and the positions at which heads read each sequence."""
    shape = (B, length) if config.head.of_tokens else (B, C, length)
    lengths = rng.integers(2, T + 1, shape[:-1])
    batch = {"tokens": rng.integers(0, V, shape), "segment_ids": (np.arange(length) < lengths[..., None]).astype("i4")}
    batch["token_type_ids"] = rng.integers(0, 2, shape)
    if not config.head.of_tokens:
        batch["pool_positions"] = lengths - 1 if (config.body.kind == "decoder") else np.zeros_like(lengths)
    return batch


def call(apply, params, batch, **changes):
    fields = {**batch, **changes}
    return apply(params, fields.pop("tokens"), **fields)


@pytest.mark.parametrize(("trunk", "head"), PAIRS)
def test_every_head_is_on_every_trunk_and_padding_changes_nothing(trunk, head, rng):
    config, params, apply = built(trunk, head)
    shapes, axes = abstract_params(config.build(), *config.example_inputs(1, 4))
    alone, _ = abstract_params(config.body.build(), jnp.zeros((1, 4), jnp.int32))
    assert jax.tree.map(lambda x: x.shape, shapes["trunk"]) == jax.tree.map(lambda x: x.shape, alone)
    assert set(shapes) == {"trunk", "head"} and shapes["head"]["kernel"].shape == (8, config.head.features)
    names = {name for leaf in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)) for name in leaf}
    assert names <= set(REPLICATED)

    batch = example(config, rng, T + 4)
    short = {name: x if name == "pool_positions" else x[..., :T] for name, x in batch.items()}
    noise = np.where(batch["segment_ids"] > 0, batch["tokens"], rng.integers(0, V, batch["tokens"].shape))
    out, other, cut = (call(apply, params, x) for x in (batch, {**batch, "tokens": noise}, short))
    assert cut["logits"].shape == HEADS[head][1] and cut["logits"].dtype == jnp.float32
    assert ("lm" in out) == (config.body.kind == "decoder")
    if config.body.kind == "decoder":
        assert cut["lm"].shape == (*short["tokens"].shape, V)
    real = short["segment_ids"] > 0 if config.head.of_tokens else slice(None)
    place = (slice(None), slice(T)) if config.head.of_tokens else slice(None)
    np.testing.assert_allclose(other["logits"][place][real], cut["logits"][real], atol=2e-5)
    np.testing.assert_allclose(out["logits"][place][real], cut["logits"][real], atol=2e-5)


@pytest.mark.parametrize("trunk", ["bert", "gpt"])
def test_rows_of_nothing_but_padding_are_finite_and_so_are_their_gradients(trunk, rng):
    config, params, apply = built(trunk, "classes")
    batch = example(config, rng)
    batch["segment_ids"][1] = 0
    loss = lambda params: jnp.square(call(apply, params, batch)["logits"][::2]).sum()
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params)))


def test_the_head_reads_the_trunks_own_state_at_the_extract_token(rng):
    for trunk in ("gpt", "bert", "bert with pooler"):
        config, params, apply = built(trunk, "classes")
        batch = example(config, rng)
        flat = {name: batch[name].reshape(-1, T) for name in ("tokens", "segment_ids", "token_type_ids")}
        own = make_apply(config.body.build())
        if config.body.kind == "decoder":
            lm, hidden = own(params["trunk"], flat["tokens"], segment_ids=flat["segment_ids"], with_hidden=True)
            assert hidden.shape == (B * C, T, 8)
            np.testing.assert_allclose(call(apply, params, batch)["lm"].reshape(-1, T, V), lm, atol=1e-6)
        else:
            out = own(
                params["trunk"], flat["tokens"], segment_ids=flat["segment_ids"], token_type_ids=flat["token_type_ids"]
            )
            hidden = out["hidden"]
        states = np.asarray(hidden)[np.arange(B * C), batch["pool_positions"].reshape(-1)].reshape(B, C, -1)
        if trunk == "bert with pooler":
            states = np.asarray(out["pooled"]).reshape(B, C, -1)
        wanted = states.sum(1) @ params["head"]["kernel"] + params["head"]["bias"]
        np.testing.assert_allclose(call(apply, params, batch)["logits"], wanted, atol=1e-5)


def test_without_an_extract_token_it_is_the_first_or_the_last_real_one(rng):
    for trunk in ("bert", "gpt"):
        config, params, apply = built(trunk, "choice")
        batch = example(config, rng)
        wanted = call(apply, params, batch)["logits"]
        np.testing.assert_array_equal(call(apply, params, batch, pool_positions=None)["logits"], wanted)
        if trunk == "gpt":
            assert not np.allclose(
                call(apply, params, batch, pool_positions=0 * batch["pool_positions"])["logits"], wanted
            )


def test_the_order_of_summed_sequences_does_not_count_and_that_of_options_does(rng):
    config, params, apply = built("gpt", "number")
    batch = example(config, rng)
    turned = {name: x[:, ::-1] for name, x in batch.items()}
    np.testing.assert_allclose(call(apply, params, turned)["logits"], call(apply, params, batch)["logits"], atol=1e-6)
    config, params, apply = built("gpt", "choice")
    actual, wanted = call(apply, params, turned)["logits"], call(apply, params, batch)["logits"]
    np.testing.assert_allclose(actual, wanted[:, ::-1], atol=1e-6)


def test_kinds_of_tokens_count_where_the_trunk_has_some(rng):
    for trunk, counts in (("bert", True), ("roberta", False), ("gpt", False)):
        config, params, apply = built(trunk, "tokens")
        batch = example(config, rng)
        out, other = (
            call(apply, params, batch, token_type_ids=x)["logits"]
            for x in (batch["token_type_ids"], 0 * batch["token_type_ids"])
        )
        assert np.isfinite(out).all() and np.allclose(out, other, atol=1e-5) != counts


def test_logits_of_the_language_model_cost_nothing_unless_they_are_used(rng):
    config, params, apply = built("gpt", "classes")
    batch = example(config, rng)

    def products(read):
        loss = lambda params: sum(jnp.square(call(apply, params, batch)[name]).sum() for name in read)
        text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
        return len(re.findall(rf"\[({B * C},{T}|{B},{C},{T}|{B * C * T}),{V}\]", text))

    assert products(["logits"]) == 0 < products(["logits", "lm"])


def test_dropout_is_on_with_a_key(rng):
    config, params, apply = built("gpt", "classes")
    batch = example(config, rng)
    run = lambda key: call(apply, params, batch, key=key)["logits"]
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))
    assert not np.allclose(run(jax.random.key(1)), run(None))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"body": BertConfig(**SIZES)}, r"body.heads=\('masked_lm', 'next_sentence'\).*use \(\) or \('pooler',\)"),
        (
            {"body": TRUNKS["bert with pooler"], "head": SpanExtractionHead()},
            r"body.heads=\('pooler',\).*SpanExtractionHead\(\) does not train these heads; use \(\)$",
        ),
        ({"body": T5Config()}, r"body='T5Config\(\)': is an encoder-decoder.*Seq2Seq\(\)"),
        ({"body": ElmoConfig()}, r"body='ElmoConfig\(\)': has no hidden states.*BertConfig"),
        ({"body": RegressionHead()}, r"body=RegressionHead\(\): .* BertConfig.* GPTConfig\(\), got RegressionHead"),
        ({"head": TRUNKS["gpt"]}, r"head=GPTConfig\(.*\): .* as SequenceClassificationHead\(.*\), got GPTConfig"),
        ({"head": SequenceClassificationHead}, "head=<class .*, as SequenceClassificationHead.*, got type"),
        ({"head": SequenceClassificationHead(num_classes=0)}, "head.num_classes=0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(FieldError, match=message):
        configs.check(ModelWithHead(**{"body": TRUNKS["gpt"], "head": SequenceClassificationHead(), **fields}))


def test_a_batch_of_another_task_is_refused(rng):
    config, params, apply = built("gpt", "classes")
    with pytest.raises(
        UserError, match=r"model.head=SequenceClassificationHead\(\): expected tokens .*\(batch, sequences, length\)"
    ):
        apply(params, jnp.zeros((B, T), jnp.int32))


def test_flops_leave_out_a_language_model_that_is_not_trained():
    trunk, length = TRUNKS["gpt"], 10
    classes = ModelWithHead(body=trunk, head=SequenceClassificationHead(num_classes=N))
    head = 3 * 2 * 8 * N / length
    assert classes.flops_per_token(length) == pytest.approx(trunk.flops_per_token(length) + head)
    assert classes.flops_per_token(length, 0.0) == pytest.approx(trunk.flops_per_token(length) - 6 * 8 * V + head)
    tags = ModelWithHead(body=TRUNKS["bert"], head=TokenClassificationHead(num_classes=N))
    assert tags.flops_per_token(length) == pytest.approx(TRUNKS["bert"].flops_per_token(length) + 6 * 8 * N)


@dataclasses.dataclass(kw_only=True)
class SquaredDistance(Head):
    """The head that docs/guides/finetuning_heads.md adds."""

    of_tokens, use_bias, features = False, False, 16

    def logits(self, states_BCD, linear):
        x_BCF = linear(states_BCD)
        return jnp.square(x_BCF[:, 0] - x_BCF[:, 1]).sum(-1)


def test_a_head_of_ones_own(rng):
    config = ModelWithHead(body=TRUNKS["gpt"], head=SquaredDistance())
    configs.check(config)
    params = init_params(config.build(), jax.random.key(0), jnp.zeros((1, C, 4), jnp.int32))
    batch = example(config, rng)
    logits = call(make_apply(config.build()), params, batch)["logits"]
    assert logits.shape == (B,) and (logits > 0).all()
    same = {name: np.repeat(x[:, :1], C, 1) for name, x in batch.items()}
    np.testing.assert_allclose(call(make_apply(config.build()), params, same)["logits"], 0, atol=1e-10)
