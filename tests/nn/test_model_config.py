"""Members that every model config has, also a minimal one; and the inputs of a decoder."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.errors import UserError
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.elmo import ElmoConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import ModelWithHead, RegressionHead
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.models.t5 import T5Config
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.nn.decoder_inputs import decoder_inputs
from jaxnlp.nn.kernels import DotProduct, Einsum, Flash
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.nn.positions import Rotary

KINDS = {
    "decoder": [GPTConfig(), LlamaConfig()],
    "encoder": [BertConfig()],
    "encoder-decoder": [T5Config(), TransformerConfig()],
    "other": [ElmoConfig(), ModelWithHead(body=GPTConfig(), head=RegressionHead())],
}


@dataclasses.dataclass(kw_only=True)
class Bare(ModelConfig):
    """A model config that overrides nothing."""


def test_a_config_that_defines_nothing_has_an_answer_to_everything():
    bare = Bare()
    assert dataclasses.fields(bare) == ()
    assert (bare.kind, bare.can_generate, bare.body is bare, bare.length_limit) == ("other", False, True, None)
    assert (bare.attention, bare.policy, bare.remat, bare.scan_layers, bare.head) == (None,) * 5
    assert (bare.kv_heads, bare.key_dim, bare.num_layers, bare.num_types, bare.heads) == (0, 0, 0, 1, ())
    assert [x.shape for x in bare.example_inputs(2, 3)] == [(2, 3)]
    for missing in (bare.build, lambda: bare.flops_per_token(1), lambda: bare.init_cache(1, 1)):
        with pytest.raises(TypeError, match="Bare"):
            missing()


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_say_what_generates_and_what_is_read(kind):
    for config in KINDS[kind]:
        assert (config.kind, config.can_generate) == (kind, kind in ("decoder", "encoder-decoder"))
        assert "kind" not in {field.name for field in dataclasses.fields(config)}
        assert len(config.example_inputs(1, 4)) == (2 if kind == "encoder-decoder" else 1)


def test_the_body_is_the_model_itself_or_what_is_under_a_head():
    alone = BertConfig(num_layers=3)
    under = ModelWithHead(body=alone, head=RegressionHead())
    assert under.body is alone and under.with_body(num_layers=5).body == alone.with_body(num_layers=5)
    assert alone.with_body(num_layers=5) == BertConfig(num_layers=5) and alone.num_layers == 3
    assert (under.attention, under.policy, under.length_limit) == (alone.attention, alone.policy, 512)


def test_only_positions_of_a_table_limit_the_length():
    GPTConfig(positions=Rotary(), max_length=4).check_length(5)
    GPTConfig(max_length=4).check_length(4)
    with pytest.raises(UserError, match=r"model.max_length=4: the sequence has 5 positions; raise max_length"):
        GPTConfig(max_length=4).check_length(5)


def test_a_kernel_says_where_it_runs():
    runs = [(kernel, kernel.runs_on("cpu")) for kernel in (Einsum(), DotProduct(), Flash(interpret=True))]
    assert all(on_cpu for _, on_cpu in runs)
    assert not Flash().runs_on("gpu") and Flash().runs_on("tpu")
    assert not DotProduct(implementation="cudnn").runs_on("cpu")


def test_a_decoder_continues_at_the_offset_of_its_cache():
    cache = {"layers": "of each", "segments": jnp.asarray([[1, 1, 0, 0, 0]]), "offset": jnp.int32(2)}
    inputs = decoder_inputs((1, 2), None, None, cache, window=3)
    np.testing.assert_array_equal(inputs.positions_BT, [[2, 3]])
    after = inputs.next_cache("new")
    np.testing.assert_array_equal(after["segments"], [[1, 1, 1, 1, 0]])
    assert (int(after["offset"]), after["layers"], inputs.layers, inputs.mask.window) == (4, "new", "of each", 3)
    np.testing.assert_array_equal(inputs.bias(lambda queries, keys: queries[:, None] - keys)[:, 0], [2, 3])
    assert inputs.bias(lambda queries, keys: keys).shape == (5,)
    fresh = decoder_inputs((1, 2), None, None, None)
    assert fresh.mask.query_segments_BT is None and fresh.layers is None
    assert fresh.bias(lambda queries, keys: keys).shape == (2,)
