"""The Python API: from a folder to text, against transformers and the entry points."""

import dataclasses
import importlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers

import jaxnlp
from jaxnlp.data.pipeline import open_split
from jaxnlp.data.text.sources import Files
from jaxnlp.errors import UserError
from jaxnlp.evals.loss import LossEvaluator
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import Sharding
from tests.entry import ROOT
from tests.experiments import small
from tests.reference import torch, transformers

WORDS = ["<unk>", "a", "b", "c", "line", "of", "words", "that", "is", "not", "long", "one", "two"]
BOS, EOS = len(WORDS), len(WORDS) + 1
TEXTS = ["a line of words", "one", "b b c"]


def library(bos: bool) -> tokenizers.Tokenizer:
    """A word tokenizer; with `bos` it prepends <s>, as Llama's does."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(["<s>", "</s>"])
    if bos:
        made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return made


def write(folder, name: str):
    """Saves a random transformers model in a folder, and returns it."""
    torch.manual_seed(0)
    common = {"vocab_size": EOS + 1, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    common["initializer_range"] = 0.4
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=24, **common)
        model = transformers.GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = transformers.LlamaConfig(intermediate_size=24, max_position_embeddings=24, **sizes, **common)
        model = transformers.LlamaForCausalLM(config)
    model.eval().save_pretrained(folder)
    library(name == "llama").save(str(folder / "tokenizer.json"))
    return model


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    theirs = write(folder, request.param)
    return jaxnlp.load(folder), theirs, library(request.param == "llama"), folder


def test_from_a_folder_to_text_in_five_lines(pair):
    folder = pair[3]
    import jaxnlp

    model = jaxnlp.load(folder)
    print(model.generate("a line of", max_new_tokens=5, temperature=0.8))


def test_generated_text_is_that_of_transformers(pair):
    ours, theirs, encode, _ = pair
    for text, new in zip(TEXTS, ours.generate(TEXTS, max_new_tokens=6), strict=True):
        ids = torch.tensor([encode.encode(text).ids])
        wanted = theirs.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
        assert new.split() == encode.decode(wanted).split() if " " in new else new == encode.decode(wanted)
    assert isinstance(ours.generate(TEXTS[0], max_new_tokens=2), str)
    (generation,) = ours.generations([TEXTS[0]], 6)
    ids = torch.tensor([encode.encode(TEXTS[0]).ids])
    wanted = theirs.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    assert generation.ids == [i for i in wanted if i != EOS] and len(wanted) > 1


def test_scores_are_log_probabilities_of_transformers(pair):
    ours, theirs, encode, _ = pair
    continuations = ["that is not", "two", "a line of long words"]
    scores = ours.score(TEXTS, continuations)
    for prompt, continuation, score in zip(TEXTS, continuations, scores, strict=True):
        first, second = encode.encode(prompt).ids, encode.encode(continuation, add_special_tokens=False).ids
        with torch.no_grad():
            log_probs = theirs(torch.tensor([first + second])).logits[0].log_softmax(-1)
        wanted = sum(float(log_probs[len(first) - 1 + i, token]) for i, token in enumerate(second))
        assert score == pytest.approx(wanted, abs=1e-3)
    with pytest.raises(UserError, match="score: 3 prompts for 1 continuations"):
        ours.score(TEXTS, ["a"])
    if (limit := ours.config.length_limit) == 24:  # a text as long as the model can read
        assert ours.score(["a"], [" a" * (limit - 1)])[0] < 0
        with pytest.raises(
            UserError, match="score: text 1: prompt and continuation have 25 tokens, .*max_length is 24"
        ):
            ours.score(["a", "a"], ["a", " a" * limit])


def test_embeddings_are_the_mean_of_the_last_states(pair):
    ours, theirs, encode, _ = pair
    embeddings = ours.embed(TEXTS)
    for text, row in zip(TEXTS, embeddings, strict=True):
        with torch.no_grad():
            states = theirs(torch.tensor([encode.encode(text).ids]), output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(row, states[0].mean(0).numpy(), atol=2e-4)
    if ours.config.length_limit is not None:  # rotary positions have no maximum
        with pytest.raises(UserError, match="has 25 tokens; model.max_length is 24"):
            ours.embed(["a " * 25])


def test_a_saved_copy_is_the_same_model(pair, tmp_path):
    ours, theirs, encode, _ = pair
    ours.save(tmp_path)
    assert jaxnlp.load(tmp_path).generate(TEXTS, max_new_tokens=4) == ours.generate(TEXTS, max_new_tokens=4)
    loaded = type(theirs).from_pretrained(tmp_path)
    tokens = torch.tensor([encode.encode(TEXTS[0]).ids])
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, theirs(tokens).logits)
    with pytest.raises(UserError, match="format='onnx' is not supported; expected 'huggingface'"):
        ours.save(tmp_path, format="onnx")


def test_what_a_model_cannot_do_is_an_error_that_names_it(pair):
    ours = pair[0]
    with pytest.raises(UserError, match="predict: .*expected a run fine-tuned on records"):
        ours.predict(["a"])
    with pytest.raises(UserError, match="evaluate: .*it has no data"):
        ours.evaluate()
    with pytest.raises(UserError, match="evaluate: evaluator 'own': .*it has no data; set the evaluator's source"):
        ours.evaluate(evaluators=[LossEvaluator(name="own")])
    for fields, message in (
        ({"evaluators": [LossEvaluator]}, r"evaluators\[0\]=.*expected a name, or an Evaluator"),
        ({"evaluators": []}, r"evaluators=\[\]: expected names or objects"),
        ({"evaluators": ["squad"]}, "evaluators='squad': no evaluator 'squad'; expected module:name, or one of loss"),
        ({"evaluators": [LossEvaluator(name="a/b")]}, r"evaluators\[0\].name='a/b'"),
        ({"evaluators": ["loss"], "limit": "3"}, "limit='3': expected a positive number"),
    ):
        with pytest.raises(UserError, match=message):
            ours.evaluate(**fields)
    with pytest.raises(UserError, match="no masked-word head"):
        ours.fill_mask("a [MASK]")
    with pytest.raises(UserError, match=r"report: .*expected the result of train"):
        ours.report()


def test_an_imported_model_is_evaluated_on_the_source_of_an_evaluator(pair, tmp_path):
    (tmp_path / "text.txt").write_text("a line of words\n" * 40)
    source = Files(train=str(tmp_path / "text.txt"), validation=str(tmp_path / "text.txt"))
    metrics = pair[0].evaluate(evaluators=[LossEvaluator(name="own", source=source, limit=2)])
    assert metrics["own/loss"] > 0 and metrics["own/tokens"] > 0


def test_attention_is_that_of_transformers(pair):
    ours, theirs, encode, _ = pair
    theirs.set_attn_implementation("eager")
    (layers,) = ours.attention("a line of words")
    with torch.no_grad():
        ids = torch.tensor([encode.encode("a line of words").ids])
        wanted = torch.cat(theirs(ids, output_attentions=True).attentions)
    np.testing.assert_allclose(layers.weights_LHTS, wanted.numpy(), atol=1e-4)
    assert len(layers.queries) == len(layers.keys) == ids.shape[1]


def test_no_texts_are_no_answers_and_what_is_no_text_is_refused(pair):
    ours, _, _, folder = pair
    assert ours.generate([]) == ours.score([], []) == [] and ours.embed([]).shape == (0, 16)
    for call, message in (
        (lambda: ours.generate(3), "generate: texts=3: expected texts, got int"),
        (lambda: ours.generate(["a", 3]), "generate: texts: 3: expected a text, got int"),
        (lambda: ours.generate("a", max_new_tokens=0), "max_new_tokens=0: expected a positive number"),
        (lambda: ours.generate("a", temprature=1.0), "generate: no option 'temprature'; did you mean 'temperature'"),
        (lambda: ours.generate("a", temperature=-1.0), "temperature=-1.0: expected 0"),
        (lambda: ours.score("a", "b"), r"score: prompts='a': expected a list of texts, as \['a'\]"),
        (lambda: ours.score(["a"], [None]), "score: continuations: None: expected a text, got NoneType"),
        (lambda: ours.embed("a b"), "embed: texts='a b': expected a list of texts"),
        (lambda: ours.attention(["a"]), r"attention: text: \['a'\]: expected a text, got list"),
        (lambda: ours.attention("a", "b"), "target: not supported for a decoder-only model; expected the full text"),
        (lambda: ours.fill_mask(3), "fill_mask: text: 3: expected a text, got int"),
        (lambda: jaxnlp.load(3), "load: 3: expected the path of a folder, or a hub id"),
        (lambda: jaxnlp.load(folder, "best"), "load: checkpoint='best': .* is a single model; only a run has"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    if ours.loaded.decoder_start_ids == ():  # no start token
        (a,) = pair[2].encode("a").ids
        with torch.no_grad():
            wanted = torch.log_softmax(pair[1](torch.tensor([[BOS]])).logits[0, -1], -1)[a]
        assert abs(ours.score([""], ["a"])[0] - float(wanted)) < 1e-4  # an empty prompt begins with <s>
        for call in (lambda: ours.embed([""]), lambda: ours.attention("")):
            with pytest.raises(UserError, match="empty.*the model has no start token"):
                call()


def test_a_folder_that_holds_nothing(tmp_path):
    with pytest.raises(UserError, match="has neither a checkpoint of a run nor a model"):
        jaxnlp.load(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        jaxnlp.load(tmp_path / "gone")


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    e = small.get_config(str(corpus))
    e.sharding, e.num_steps, e.log_every, e.sample_tokens = Sharding(mesh=MeshConfig()), 4, 2, 0
    folder = tmp_path_factory.mktemp("trained")
    return jaxnlp.train(e, folder), folder


def test_a_trained_model_evaluates_generates_and_loads_again(trained):
    model, folder = trained
    again = jaxnlp.load(folder)
    assert (model.step, again.step) == (4, 4) and model.result is not None and again.result is None
    assert model.evaluate() == again.evaluate() == jaxnlp.evaluate(folder) == model.result.validation
    assert model.evaluate(limit=1)["tokens"] < model.evaluate()["tokens"]
    assert model.generate("def", max_new_tokens=5) == again.generate("def", max_new_tokens=5)
    assert model.score(["def"], [" x"])[0] < 0
    assert "this model" in model.report()
    tokens = np.zeros((1, 4), np.int32)
    logits = again.apply(again.params, tokens)
    assert logits.shape == (1, 4, again.config.vocab_size)
    total = lambda params: again.apply(params, tokens).sum()
    value, gradient = jax.jit(jax.value_and_grad(total))(again.params)
    np.testing.assert_allclose(value, logits.sum(), rtol=1e-4)
    assert jax.tree.structure(gradient) == jax.tree.structure(again.params)
    assert jaxnlp.load(folder, 4).step == jaxnlp.load(folder, "4").step == 4
    for call, message in (
        (lambda: jaxnlp.load(folder, 3), "checkpoint='3': expected latest, best, or a step of 4"),
        (lambda: jaxnlp.load(folder, "newest"), "checkpoint='newest': expected latest, best, or a step of 4"),
        (lambda: model.evaluate("valid"), "'valid': expected one of train, validation, test"),
        (lambda: model.evaluate(limit=0), "limit=0: expected a positive number of batches"),
        (lambda: model.predict(["a"]), r"predict: .*its task is Packed\(\); expected a run fine-tuned on records"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_a_config_file_is_an_experiment(corpus):
    e = jaxnlp.load_config(f"{ROOT}/tests/experiments/small.py:{corpus}")
    assert isinstance(e, jaxnlp.Experiment) and e.num_steps == 12


def test_an_adapted_run_is_merged_and_saved(corpus, tmp_path):
    from jaxnlp.peft import LoRA, files

    e = jaxnlp.load_config(f"{ROOT}/tests/experiments/small.py:{corpus}")
    e.peft, e.num_steps, e.checkpoint_every = LoRA(rank=2, targets=("query",)), 4, 4
    e.sharding = Sharding(mesh=MeshConfig(data=-1))
    model = jaxnlp.train(e, tmp_path / "run")
    merged, tokens = model.merged(), np.arange(8)[None]
    assert merged.experiment.peft is None and "lora_A" not in str(jax.tree.structure(merged.params))
    np.testing.assert_allclose(merged.apply(merged.params, tokens), model.apply(model.params, tokens), atol=1e-4)
    again = jaxnlp.load(tmp_path / "run")
    assert again.base_fingerprint() == model.base_fingerprint()
    changed = jax.tree.map(lambda x: x + 1, model.params)
    other = jaxnlp.Model(dataclasses.replace(model.loaded, params=changed), "x")
    assert other.base_fingerprint() != model.base_fingerprint()
    model.save(tmp_path / "tuned.safetensors", format="safetensors")
    assert files.read(tmp_path / "tuned.safetensors")[0] == model.experiment.peft
    model.save(tmp_path / "peft", format="peft")
    assert (tmp_path / "peft" / "adapter_config.json").exists()
    for call in (merged.merged, merged.base_fingerprint, lambda: merged.save(tmp_path / "x", format="peft")):
        with pytest.raises(UserError, match="a run with a PEFT method"):
            call()


def test_batches_and_architecture_of_a_config(corpus):
    e, tokenizer = jaxnlp.prepare(jaxnlp.load_config(f"{ROOT}/tests/experiments/small.py:{corpus}"))
    first, second = jaxnlp.batches(e, tokenizer, "train", limit=2)
    assert first["tokens"].shape == (e.data.batch_size, e.data.seq_len) and (first["tokens"] != second["tokens"]).any()
    total = sum(int(batch["weights"].sum()) for batch in jaxnlp.batches(e, tokenizer))
    assert total == len(open_split(e.data, "validation", tokenizer)) - 1  # each token once, except the first
    program = jaxnlp.build(e, jax.devices()[:1])
    assert jaxnlp.architecture(e).count == sum(x.size for x in jax.tree.leaves(program.abstract.params))
    assert f"parameters: {jaxnlp.architecture(e).count:,}" in jaxnlp.dry_run_report(program)
    assert jaxnlp.estimate_memory(program)["parameters"] == 4 * jaxnlp.architecture(e).count


@pytest.mark.parametrize("room", ["evals", "figures", "nn", "peft", "sharding"])
def test_the_public_names_of_a_room(room):
    package = importlib.import_module(f"jaxnlp.{room}")
    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match=f"'jaxnlp.{room}' has no attribute 'nothing'; its public names are"):
        package.nothing  # noqa: B018


def test_the_package_imports_nothing_until_a_name_is_used():
    program = "import sys, jaxnlp; print('jax' in sys.modules, 'numpy' in sys.modules, sorted(dir(jaxnlp)))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.startswith("False False") and all(f"'{name}'" in out for name in jaxnlp.__all__)
    for name in jaxnlp.__all__:
        assert f"  {name}" in jaxnlp.__doc__ and getattr(jaxnlp, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'lode'; its public names are Experiment, Model"):
        jaxnlp.lode  # noqa: B018
