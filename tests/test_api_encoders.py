"""The Python API of encoders, encoder-decoders and fine-tuned models."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers

import jaxnlp
from jaxnlp.data.tasks.multiple_choice import MultipleChoiceTask
from jaxnlp.errors import FieldError, UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.models.heads import MultipleChoiceHead
from jaxnlp.objectives.multiple_choice import MultipleChoice
from jaxnlp.peft.lora import LoRA
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.load import Loaded
from jaxnlp.training.run_folder.checkpoint import Saved
from jaxnlp.training.setup import prepare
from jaxnlp.training.step.program import build
from tests.experiments import small, small_task
from tests.reference import torch, transformers

WORDS = ["[UNK]", "a", "b", "line", "of", "words"]
SPECIALS = {"bert": ["[PAD]", "[CLS]", "[SEP]", "[MASK]"], "t5": ["<pad>", "</s>"]}


def library(name: str) -> tokenizers.Tokenizer:
    """A word tokenizer with the post-processor of the model's tokenizer."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(SPECIALS[name])
    ids = {token: made.token_to_id(token) for token in SPECIALS[name]}
    single, pair = {"bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"), "t5": ("$A </s>", "$A </s>")}[name]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, pair=pair if name == "bert" else None, special_tokens=[*ids.items()]
    )
    return made


def write(folder, name: str):
    """Saves a random transformers model in a folder, and returns it."""
    torch.manual_seed(0)
    encode = library(name)
    size = {"vocab_size": encode.get_vocab_size(), "pad_token_id": len(WORDS)}
    if name == "bert":
        config = transformers.BertConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=16, initializer_range=0.4, attn_implementation="eager", **size,
        )  # fmt: skip
        model = transformers.BertForPreTraining(config)
    else:
        start = {"decoder_start_token_id": len(WORDS), "eos_token_id": len(WORDS) + 1}
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
        config = transformers.T5Config(**sizes, **start, **size, attn_implementation="eager")
        model = transformers.T5ForConditionalGeneration(config)
    model.eval().save_pretrained(folder)
    encode.save(str(folder / "tokenizer.json"))
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    theirs = write(folder, "bert")
    return jaxnlp.load(folder), theirs, library("bert")


def test_masks_are_filled_as_by_transformers(bert):
    ours, theirs, encode = bert
    ids = encode.encode("a [MASK] of [MASK]").ids
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).prediction_logits[0]
    guesses = ours.fill_mask("a [MASK] of [MASK]", top=3)
    masks = [i for i, token in enumerate(ids) if token == encode.token_to_id("[MASK]")]
    assert len(guesses) == len(masks) == 2
    for place, row in zip(masks, guesses, strict=True):
        wanted = logits[place].softmax(-1).topk(3)
        assert [guess.token for guess in row] == wanted.indices.tolist()
        np.testing.assert_allclose([guess.probability for guess in row], wanted.values, rtol=1e-3)
        assert all(guess.piece in (None, encode.id_to_token(guess.token)) for guess in row)


def test_attention_of_an_encoder_is_that_of_transformers(bert):
    ours, theirs, encode = bert
    pair = encode.encode("a line", "of words")
    with torch.no_grad():
        types = torch.tensor([pair.type_ids])
        output = theirs.bert(torch.tensor([pair.ids]), token_type_ids=types, output_attentions=True)
    (layers,) = ours.attention("a line", "of words")
    np.testing.assert_allclose(layers.weights_LHTS, torch.cat(output.attentions).numpy(), atol=1e-4)
    assert layers.keys == pair.tokens


def test_an_encoder_is_saved_as_it_was(bert, tmp_path):
    ours, theirs, encode = bert
    ours.save(tmp_path, format="huggingface")
    again = jaxnlp.load(tmp_path)
    assert again.config == ours.config
    jax.tree.map(np.testing.assert_array_equal, again.params, ours.params)
    loaded = transformers.BertForPreTraining.from_pretrained(tmp_path)
    for name, x in theirs.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], x)


def test_what_an_encoder_cannot_do_is_named(bert):
    ours, _, _ = bert
    for call, message in (
        (lambda: ours.generate("a"), "BertConfig: cannot generate text, as it has no decoding cache"),
        (lambda: ours.score(["a"], ["b"]), "BertConfig: cannot generate"),
        (lambda: ours.predict(["a"]), "predict: .*expected a run fine-tuned on records"),
        (lambda: ours.fill_mask("a of"), r"text='a of': contains no \[MASK\]; put it in place of a word"),
        (lambda: ours.fill_mask("a [MASK]", top=0), "top=0: expected 1 or more"),
        (lambda: ours.fill_mask("[MASK]" + " a" * 20), "text: has 23 tokens; model.max_length is 16"),
        (lambda: ours.embed(["a " * 20]), "text: has 22 tokens; model.max_length is 16"),
        (lambda: ours.attention("a " * 20), "text: has 22 tokens; model.max_length is 16"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.slow
def test_an_encoder_decoder_does_what_transformers_does(tmp_path):
    theirs, encode = write(tmp_path, "t5"), library("t5")
    ours = jaxnlp.load(tmp_path)
    source, target = torch.tensor([encode.encode("a line of words").ids]), encode.encode("b of").ids[:-1]
    start = theirs.config.decoder_start_token_id
    with torch.no_grad():
        output = theirs(source, decoder_input_ids=torch.tensor([[start, *target]]), output_attentions=True)
    kinds = ("encoder_attentions", "decoder_attentions", "cross_attentions")
    for layers, kind in zip(ours.attention("a line of words", "b of"), kinds, strict=True):
        np.testing.assert_allclose(layers.weights_LHTS, torch.cat(output[kind]).numpy(), atol=1e-4)
    log_probs = output.logits[0].log_softmax(-1)
    wanted = sum(float(log_probs[i, token]) for i, token in enumerate(target))
    assert ours.score(["a line of words"], ["b of"]) == [pytest.approx(wanted, abs=1e-3)]
    ours.save(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, jaxnlp.load(tmp_path / "saved").params, ours.params)
    for call, message in (
        (lambda: ours.attention("a"), "target: not given; expected the decoder input"),
        (lambda: ours.embed(["a"]), "embed: .* its kind is 'encoder-decoder'; expected a decoder or an encoder"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def opened(experiment: Experiment) -> jaxnlp.Model:
    """A model with random parameters, as `load` returns it."""
    resolved, tokenizer = prepare(experiment)
    program = build(resolved)
    params = program.init().all_params
    return jaxnlp.Model(Loaded(Saved(1, resolved, tokenizer, {}, {}), program, params), "runs/x")


def test_predictions_are_the_heads_probabilities(tmp_path):
    model = opened(small_task.get_config(str(tmp_path)))
    texts = ["yes", "no!", "abc", *("x" * i for i in range(1, 9))]
    answers = model.predict(texts)
    assert answers == model.predict([{"text": text} for text in texts]) and len(answers) == 11  # in batches of 8
    apply = jax.jit(model.apply)
    for text, answer in zip(texts[:3], answers, strict=False):
        cls, sep = (model.tokenizer.special_id(name) for name in ("[CLS]", "[SEP]"))
        row = np.asarray([[[cls, *text.encode(), sep]]], np.int32)
        wanted = jax.nn.softmax(apply(model.params, row)["logits"][0])
        np.testing.assert_allclose([*answer["probabilities"].values()], wanted, rtol=1e-4)
        assert answer["label"] == ("bad", "good")[int(np.argmax(wanted))]
        assert [*answer["probabilities"]] == ["bad", "good"]
    assert model.predict([]) == []
    for call, message in (
        (lambda: model.predict("yes"), r"predict: records='yes': expected a list of records, as \['yes'\]"),
        (lambda: model.predict([3]), "predict: 3: expected a dict of fields, or a text, got int"),
        (lambda: model.predict([{"words": "yes"}]), r"records\[0\] has no such field \(it has: words\)"),
        (lambda: model.predict(["x" * 40]), r"data.seq_len=32: .*records\[0\]"),
        (
            lambda: model.generate("yes"),
            "ModelWithHead: cannot generate text, as it is fine-tuned; use experiments.predict",
        ),
        (lambda: model.embed(["yes"]), "embed: .*is fine-tuned; load the pretrained model"),
        (lambda: model.fill_mask("[MASK]"), "ModelWithHead: the model has no masked-word head"),
        (lambda: model.save(tmp_path / "x"), "ModelWithHead"),
    ):
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.slow
def test_a_task_of_several_texts_needs_records(tmp_path):
    e = small_task.get_config(str(tmp_path))
    e.data.task, e.objective = MultipleChoiceTask(num_options=2), MultipleChoice()
    e.model = dataclasses.replace(e.model, head=MultipleChoiceHead())
    model = opened(e)
    (answer,) = model.predict([{"context": "a", "options": ["b", "c"]}])
    assert answer["option"] in (0, 1) and sum(answer["probabilities"]) == pytest.approx(1)
    with pytest.raises(UserError, match=r"MultipleChoiceTask\(\) reads several fields; expected dicts"):
        model.predict(["a"])
    with pytest.raises(FieldError, match="expected a list of 2 texts"):
        model.predict([{"context": "a", "options": ["b"]}])


@pytest.mark.slow
def test_a_tuned_model_is_saved_merged(corpus, tmp_path):
    e = small.get_config(str(corpus))
    e.sharding, e.sample_tokens, e.peft = Sharding(mesh=MeshConfig()), 0, LoRA(rank=2)
    e.num_steps, e.eval_every, e.checkpoint_every = 3, 0, 0
    model = jaxnlp.train(e, tmp_path / "run")
    model.save(tmp_path / "saved")
    config, theirs = model.config, transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "saved")
    tokens = np.arange(10)[None]
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(model.apply(model.params, tokens), wanted, atol=1e-4)
    assert isinstance(config, GPTConfig)
