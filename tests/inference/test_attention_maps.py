"""Attention maps of every kind of model, and mask filling with an encoder."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.masking import Masked
from jaxnlp.data.text.sources import Files
from jaxnlp.data.text.span_corruption import SpanCorruption
from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.errors import UserError
from jaxnlp.inference.attention_maps import attention_maps
from jaxnlp.inference.fill_mask import encoder_row, fill_mask
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import ModelWithHead, TokenClassificationHead
from jaxnlp.models.llama import LlamaConfig
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.nn import kernels
from jaxnlp.objectives.masked_lm import MaskedLM
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.experiment import Experiment, resolve
from jaxnlp.training.load import Loaded
from jaxnlp.training.run_folder.checkpoint import Saved
from jaxnlp.training.step.program import build

SIZES = {"max_length": 24, "num_layers": 2, "num_heads": 4, "embed_dim": 16, "dropout_rate": 0.0}
LLAMA = {"num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 16, "mlp_dim": 24}
SPECIALS = ("[CLS]", "[SEP]", "[MASK]")


def made(model, **changes):
    """A run with random weights."""
    tokenizer = ByteTokenizer(SPECIALS)
    experiment = Experiment(
        model=model,
        data=DataConfig(source=Files(train="x.txt"), seq_len=16, batch_size=1),
        sharding=Sharding(mesh=MeshConfig(data=1)),
        **changes,
    )
    experiment = resolve(experiment, tokenizer)
    program = build(experiment, jax.devices()[:1])
    params = jax.tree.map(lambda x: 3 * x, program.init().params)
    return Loaded(Saved(0, experiment, tokenizer, {}, {}), program, params)


def bound(run):
    """(model, parameters), with the task of the run's config."""
    return dataclasses.replace(run.bound, task=run.saved.experiment.data.task), run.params


DECODERS = {
    "gpt": GPTConfig(**SIZES),
    "scanned": GPTConfig(**SIZES, scan_layers=True, attention=kernels.Blocked(block=4)),
    "window": GPTConfig(**SIZES, window=3),
    "llama": LlamaConfig(**LLAMA),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_sees_the_separator_and_what_came_before(name):
    (attention,) = attention_maps(*bound(made(DECODERS[name])), "a b\n")
    layers = 3 if name == "llama" else 2
    assert (
        attention.name == "attention" and attention.layers == tuple(range(layers)) and attention.heads == (0, 1, 2, 3)
    )
    assert attention.queries == attention.keys == ["<|endoftext|>", "a", "␣", "b", "↵"]
    assert attention.weights_LHTS.shape == (layers, 4, 5, 5)
    np.testing.assert_allclose(attention.weights_LHTS.sum(-1), 1, atol=1e-6)
    unseen = np.triu(np.ones((5, 5), bool), 1)
    if name == "window":
        unseen |= np.tril(np.ones((5, 5), bool), -3)
    np.testing.assert_array_equal(attention.weights_LHTS == 0, np.broadcast_to(unseen, attention.weights_LHTS.shape))


def test_an_encoder_reads_its_special_tokens_and_a_pair_with_types():
    run = made(BertConfig(**SIZES), objective=MaskedLM())
    (attention,) = attention_maps(*bound(run), "ab", "c")
    assert attention.keys == ["[CLS]", "a", "b", "[SEP]", "c", "[SEP]"]
    np.testing.assert_allclose(attention.weights_LHTS.sum(-1), 1, atol=1e-6)
    assert (attention.weights_LHTS > 0).all()
    row = encoder_row(bound(run)[0], "ab", "c")
    assert row.token_type_ids.tolist() == [0, 0, 0, 0, 1, 1]
    kinds = run.params["types"]["embedding"]
    moved = dataclasses.replace(run, params={**run.params, "types": {"embedding": kinds.at[1].multiply(-9.0)}})
    assert not np.allclose(attention_maps(*bound(moved), "ab", "c")[0].weights_LHTS, attention.weights_LHTS, atol=1e-3)
    np.testing.assert_array_equal(
        attention_maps(*bound(moved), "ab")[0].weights_LHTS, attention_maps(*bound(run), "ab")[0].weights_LHTS
    )


@pytest.mark.parametrize("scanned", [False, True])
def test_an_encoder_decoder_has_three_parts(scanned):
    run = made(TransformerConfig(**SIZES, num_decoder_layers=3, scan_layers=scanned))
    maps = {m.name: m for m in attention_maps(*bound(run), "abcd", "xy")}
    assert list(maps) == ["encoder/attention", "decoder/attention", "decoder/cross_attention"]
    source, target = ["a", "b", "c", "d", "<|endoftext|>"], ["<|endoftext|>", "x", "y"]
    labels = {name: (m.queries, m.keys, len(m.layers)) for name, m in maps.items()}
    assert labels["encoder/attention"] == (source, source, 2)
    assert labels["decoder/attention"] == (target, target, 3)
    assert labels["decoder/cross_attention"] == (target, source, 3)
    for m in maps.values():
        assert m.weights_LHTS.shape[2:] == (len(m.queries), len(m.keys))
        np.testing.assert_allclose(m.weights_LHTS.sum(-1), 1, atol=1e-6)


def test_a_decoder_begins_as_in_training_and_sentinels_have_their_names():
    run = made(TransformerConfig(**SIZES))
    tokenizer = ByteTokenizer(("<pad>", "<extra_id_0>"))
    data = dataclasses.replace(run.saved.experiment.data, task=SpanCorruption(decoder_start_token="<pad>"))
    saved = dataclasses.replace(run.saved, experiment=dataclasses.replace(run.saved.experiment, data=data))
    run = dataclasses.replace(run, saved=dataclasses.replace(saved, tokenizer=tokenizer))
    _, _, cross = attention_maps(*bound(run), "a<extra_id_0>", "<extra_id_0>b")
    assert cross.keys == ["a", "<extra_id_0>", "<|endoftext|>"] and cross.queries == ["<pad>", "<extra_id_0>", "b"]


def test_a_fine_tuned_model_shows_its_trunk():
    bert = BertConfig(**SIZES, heads=())
    run = made(ModelWithHead(body=bert, head=TokenClassificationHead(num_classes=3)))
    (attention,) = attention_maps(*bound(run), "ab")
    assert attention.name == "attention" and attention.keys == ["[CLS]", "a", "b", "[SEP]"]
    (alone,) = attention_maps(*bound(dataclasses.replace(made(bert), params=run.params["trunk"])), "ab")
    np.testing.assert_array_equal(attention.weights_LHTS, alone.weights_LHTS)


def test_masks_in_a_text_are_filled_in():
    run = made(BertConfig(**SIZES, heads=("masked_lm",)), objective=MaskedLM())
    row = encoder_row(bound(run)[0], "a[MASK]c[MASK]")
    assert row.masks == [2, 4] and row.tokens[2] == run.saved.tokenizer.special_id("[MASK]")
    filled = fill_mask(*bound(run), "a[MASK]c[MASK]", top=3)
    logits = run.program.apply(run.params, row.tokens[None])["masked_lm"][0]
    for guesses, place in zip(filled, row.masks, strict=True):
        best = np.argsort(-logits[place])[:3]
        assert [g.token for g in guesses] == best.tolist()
        np.testing.assert_allclose([g.probability for g in guesses], jax.nn.softmax(logits[place])[best], rtol=1e-4)
    assert len(fill_mask(*bound(run), "a[MASK]", top=260)[0]) == 260


def test_the_space_before_a_mask_belongs_to_it_where_tokens_carry_spaces(tmp_path):
    from jaxnlp.data.tokenizer import SentencePiece

    run = made(BertConfig(**SIZES))
    assert (
        run.saved.tokenizer.decode(encoder_row(bound(run)[0], "a [MASK] b").tokens) == "a  b"
    )  # bytes are their own tokens
    config = SentencePiece(vocab_size=300, special_tokens=SPECIALS)
    tokenizer = config.build(lambda: iter([f"the cat and the dog {i}\n" for i in range(200)]), tmp_path)
    run = dataclasses.replace(run, saved=dataclasses.replace(run.saved, tokenizer=tokenizer))
    mask = tokenizer.special_id("[MASK]")
    tokens = encoder_row(bound(run)[0], "the [MASK] dog").tokens.tolist()
    assert tokens[1:-1] == [*tokenizer.encode_batch(["the"])[0], mask, *tokenizer.encode_batch([" dog"])[0]]


def errors():
    gpt, bert = GPTConfig(**SIZES), BertConfig(**SIZES)
    both = TransformerConfig(**SIZES)
    learned = dataclasses.replace(both, positions=gpt.positions)
    yield gpt, ("a", "b"), "target: not supported for a decoder-only model"
    yield gpt, ("a" * 24,), "text: has 25 tokens; model.max_length is 24"
    yield bert, ("a" * 23,), "text: has 25 tokens; model.max_length is 24"
    yield both, ("a",), "target: not given"
    yield learned, ("a", "b" * 24), "target: has 25 tokens"
    yield learned, ("a" * 24, "b"), "text: has 25 tokens"


@pytest.mark.parametrize(("model", "texts", "message"), list(errors()))
def test_what_cannot_be_shown_is_refused(model, texts, message):
    with pytest.raises(UserError, match=message):
        attention_maps(*bound(made(model)), *texts)


def test_what_cannot_be_filled_in_is_refused():
    with pytest.raises(UserError, match="GPTConfig: the model has no masked-word head"):
        fill_mask(*bound(made(GPTConfig(**SIZES))), "a[MASK]")
    run = made(BertConfig(**SIZES))
    with pytest.raises(UserError, match=r"contains no \[MASK\]; put it in place"):
        fill_mask(*bound(run), "a")
    data = dataclasses.replace(run.saved.experiment.data, task=Masked(cls="<cls>"))
    saved = dataclasses.replace(run.saved, experiment=dataclasses.replace(run.saved.experiment, data=data))
    with pytest.raises(UserError, match="the vocabulary has no <cls>"):
        fill_mask(*bound(dataclasses.replace(run, saved=saved)), "a[MASK]")
