"""What a checkpoint's own files say comes in, and goes out again: an export without a step is the identity."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import tokenizers

import jaxnlp
from jaxnlp.data.text.sources import Files
from jaxnlp.inference.beam import BeamSearch, beam_search
from jaxnlp.interop import generation_settings, huggingface
from jaxnlp.interop.source_files import SourceFiles
from jaxnlp.interop.text_ends import text_ends
from jaxnlp.training.init.import_run import create_run
from jaxnlp.training.open_huggingface import default_experiment

from ..reference import torch, transformers
from .families import CASES, build

T = transformers
SPECIAL = ["<pad>", "<s>", "</s>", "<|eot|>", "<unk>"]
WORDS = [*SPECIAL, "the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "small", "red", "house"]
FILES = {
    "chat_template.jinja": "{{ messages[0]['content'] }}",
    "additional_chat_templates/rag.jinja": "{{ messages }}",
    "LICENSE": "Apache",
    "README.md": "# Llama",
    "USE_POLICY.md": "Do no harm",
    "preprocessor_config.json": "{}",
    "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
}


def word_tokenizer(**template):
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_special_tokens(SPECIAL)
    if template:
        names = [("<s>", 1), ("</s>", 2)]
        model.post_processor = tokenizers.processors.TemplateProcessing(special_tokens=names, **template)
    return model


def save_tokenizer(folder, model, **roles):
    T.PreTrainedTokenizerFast(tokenizer_object=model, **roles).save_pretrained(folder)


def tensors(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def assert_same(theirs, ours):
    """The same files, JSON values and tensors with their dtypes; the version stamp is of no account."""
    names = lambda folder: {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names(ours) == names(theirs)
    for name in sorted(names(theirs) - {"model.safetensors"}):
        a, b = ((folder / name).read_bytes() for folder in (theirs, ours))
        if name.endswith(".json"):
            a, b = ({k: v for k, v in json.loads(x).items() if k != "transformers_version"} for x in (a, b))
        assert a == b, name
    a, b = tensors(theirs), tensors(ours)
    assert a.keys() == b.keys()
    for name, x in a.items():
        assert x.dtype == b[name].dtype and torch.equal(x, b[name]), name


@pytest.mark.parametrize("value", ["2", {"a": 1}, [[2]], True, [2, None], 2.0])
@pytest.mark.parametrize("field", ["eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"])
def test_the_id_of_a_token_that_is_no_integer_is_an_error(field, value):
    for name in ("generation_config.json", "config.json"):
        files = {"config.json": b'{"model_type": "t5"}', name: json.dumps({"model_type": "t5", field: value}).encode()}
        source = SourceFiles(files, {})
        with pytest.raises(jaxnlp.UserError, match=rf"^{name}: {field}=.*: expected the id of a token"):
            text_ends(source, word_tokenizer(), "encoder-decoder")


@pytest.mark.parametrize("name", CASES)
def test_an_export_without_a_step_is_the_identity(name, tmp_path):
    model = build(name)
    model.to(torch.bfloat16 if len(name) % 2 else torch.float32).save_pretrained(tmp_path / "theirs")
    save_tokenizer(tmp_path / "theirs", word_tokenizer(), eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    for file, text in FILES.items():
        (tmp_path / "theirs" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "theirs" / file).write_text(text)
    jaxnlp.load(tmp_path / "theirs").save(tmp_path / "ours")
    assert_same(tmp_path / "theirs", tmp_path / "ours")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_export_leaves_files_that_are_not_the_checkpoints_own(tmp_path):
    model, out = build("gpt2"), tmp_path / "out"
    model.save_pretrained(tmp_path / "theirs")
    save_tokenizer(tmp_path / "theirs", word_tokenizer(), eos_token="</s>")
    mine = ("notes.model", "vocab.txt", "1_notes/config.json", "model-best.safetensors", "d.model/x", "tokenizer.json")
    for name in mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    run = jaxnlp.load(tmp_path / "theirs")
    run.save(out)
    unchanged = {**dict.fromkeys(mine, b"mine"), "tokenizer.json": (tmp_path / "theirs/tokenizer.json").read_bytes()}
    assert contents(out) == {**contents(out), **unchanged}
    (out / "merges.txt").write_text("of the old checkpoint")
    run.save(out)  # now over a checkpoint
    assert set(contents(out)) == set(mine) - {"vocab.txt"} | set(contents(tmp_path / "theirs"))


def test_a_failed_export_leaves_the_old_checkpoint(tmp_path):
    model, out = build("gpt2"), tmp_path / "out"
    model.save_pretrained(tmp_path / "theirs")
    save_tokenizer(tmp_path / "theirs", word_tokenizer(), eos_token="</s>")
    (tmp_path / "theirs/LICENSE").write_text("Apache")
    run = jaxnlp.load(tmp_path / "theirs")
    run.save(out)
    (out / "LICENSE").unlink()
    (out / "LICENSE").mkdir()  # no file can be moved here
    (out / "LICENSE/x").write_text("mine")
    before = contents(out)
    with pytest.raises(jaxnlp.UserError, match="existing files are unchanged"):
        run.save(out)
    assert contents(out) == before


def llama(folder, seed=0, dtype=torch.float32, **fields):
    torch.manual_seed(seed)
    config = T.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        **{"num_attention_heads": 2, "max_position_embeddings": 48, "initializer_range": 0.5, **fields},
    )
    T.LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    save_tokenizer(folder, word_tokenizer(single="<s> $A", pair="<s> $A $B"), bos_token="<s>", eos_token="</s>")
    return T.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_texts_begin_and_end_as_in_transformers(tmp_path):
    tokens, ends = {"bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0}, set()
    for seed in range(40):
        theirs = llama(tmp_path, seed, **tokens)
        tokenizer = T.AutoTokenizer.from_pretrained(tmp_path)
        ids = torch.tensor([tokenizer("the cat").input_ids])
        with torch.no_grad():
            wanted = theirs.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
        ends.add(wanted[-1])
        if seed > 2 and ends < {2, 3}:  # a second of the same kind says nothing new
            continue
        generation = jaxnlp.load(tmp_path).generations(["the cat"], max_new_tokens=8)[0]
        assert generation.ids == [i for i in wanted if i not in (2, 3)]
        assert (generation.finish == "end") == (wanted[-1] in (2, 3))
        if {2, 3} <= ends:
            return
    raise AssertionError("no text ended with each of the two tokens")


@pytest.mark.parametrize(("eos", "ends"), [([6], (6,)), ([2, 6], (2, 6)), (2**40, ()), (None, (2,))])
def test_only_the_tokens_that_the_files_name_end_a_text(tmp_path, capsys, eos, ends):
    llama(tmp_path)
    fields = {"eos_token_id": eos, "temperature": 1.0, "top_k": 20, "bad_words_ids": [[2]], "cache_config": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(fields))
    assert jaxnlp.load(tmp_path).loaded.generator().end_ids == ends  # 6 ("cat") is not special
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: generation")]
    assert len(notes) == 1 and "top_k=20, bad_words_ids=[[2]] are not used" in notes[0]


def test_defaults_of_generation_are_those_of_transformers():
    theirs = T.GenerationConfig._get_default_generation_params()
    for field, value in generation_settings.DEFAULTS.items():
        assert field in vars(T.GenerationConfig()) and (theirs.get(field) or value or None) == (value or None), field


def test_beams_and_min_new_tokens_heed_every_end(tmp_path):
    theirs = llama(tmp_path, bos_token_id=1, eos_token_id=[2, 3, 5, 9], pad_token_id=0)
    model, ids = jaxnlp.load(tmp_path), torch.tensor([[1, 5, 6]])
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False, "min_new_tokens": 2, "early_stopping": False}
    with torch.no_grad():
        wanted = theirs.generate(ids, **options, num_return_sequences=3)[:, 3:].tolist()
    beams = BeamSearch(num_beams=3, num_return=3, min_new_tokens=2)
    hypotheses = beam_search(model.loaded.generator(), model.params, [[5, 6]], 5, beams)
    ends = (0, 2, 3, 5, 9)
    cut = lambda row: [i for k, i in enumerate(row) if k < 2 or i not in ends]
    assert [hypothesis.ids for hypothesis in hypotheses[0]] == [cut(row) for row in wanted]


SETTINGS = {
    "template": ({}, {"single": "<s> $A", "pair": "<s> $A $B"}),
    "template with end": ({}, {"single": "$A </s>", "pair": "$A $B </s>"}),
    "nothing": ({}, {}),
    "bos by flag": ({"add_bos_token": True}, {}),
    "flag against template": ({"add_bos_token": False}, {"single": "<s> $A", "pair": "<s> $A $B"}),
    "both by flag": ({"add_bos_token": True, "add_eos_token": True}, {}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_around_a_text_are_those_of_transformers_tokenizer(name, tmp_path):
    flags, template = SETTINGS[name]
    llama(tmp_path)
    save_tokenizer(tmp_path, word_tokenizer(**template), bos_token="<s>", eos_token="</s>")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **flags}))
    wanted = T.AutoTokenizer.from_pretrained(tmp_path)("the").input_ids
    ends = text_ends(huggingface.read_source(tmp_path), huggingface.load(tmp_path)[2], "decoder")
    assert [*ends.before, WORDS.index("the"), *ends.after] == wanted
    assert ends.eos == (2,) and ends.bos == (1,) and ends.eos_name == "</s>"


def test_fields_that_changed_are_written_and_the_others_kept(tmp_path):
    llama(tmp_path / "theirs", dtype=torch.bfloat16, eos_token_id=[2, 3])
    model = jaxnlp.load(tmp_path / "theirs")
    changed = jax.tree.map(lambda x: x + np.float32(1e-6), model.params)
    model.loaded.saved.experiment.model.norm.epsilon = 1e-3
    loaded = type(model.loaded)(**{**vars(model.loaded), "params": changed})
    jaxnlp.Model(loaded, "x").save(tmp_path / "ours")
    theirs, ours = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours"))
    assert {name for name in ours if ours[name] != theirs.get(name)} == {"rms_norm_eps", "dtype"}
    assert ours["dtype"] == "float32" and ours.keys() == theirs.keys()
    assert {x.dtype for x in tensors(tmp_path / "ours").values()} == {torch.float32}  # bfloat16 would round the change


def test_an_imported_run_reads_no_corpus_and_gives_the_same_texts_and_files(tmp_path):
    theirs = llama(tmp_path / "theirs", 1, torch.bfloat16, bos_token_id=1, eos_token_id=[2, 3], pad_token_id=0)
    config, params, tokenizer = huggingface.load(tmp_path / "theirs")
    source = huggingface.read_source(tmp_path / "theirs")
    experiment = default_experiment(config, tokenizer, source)
    assert experiment.data.seq_len == 48  # max_position_embeddings
    experiment.data.source = Files(train=str(tmp_path / "no such file"))
    create_run(experiment, config, params, tokenizer, None, str(tmp_path / "run"), source)
    model = jaxnlp.load(tmp_path / "run")
    with torch.no_grad():
        wanted = theirs.generate(torch.tensor([[1, 5, 6]]), max_new_tokens=6, do_sample=False)[0, 3:].tolist()
    assert model.generations(["the cat"], max_new_tokens=6)[0].ids == [i for i in wanted if i not in (2, 3)]
    model.save(tmp_path / "ours")
    assert_same(tmp_path / "theirs", tmp_path / "ours")
    with torch.no_grad():  # an empty prompt
        wanted = theirs.generate(max_new_tokens=6, do_sample=False)[0, 1:].tolist()
    assert model.generations([""], max_new_tokens=6)[0].ids == [i for i in wanted if i not in (2, 3)]
