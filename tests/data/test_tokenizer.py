"""Tokenizers: lossless, with an end-of-text token no text can make, and readable from JSON alone."""

import json
import pathlib

import pytest

from jaxnlp.data import tokenizer as tokenizers
from jaxnlp.data.huggingface_tokenizer import HuggingFace
from jaxnlp.errors import UserError

TEXTS = [
    "def main():\n    return 0\n",
    "",
    " ",
    "\t\ttabs\r\n and  runs   of spaces ",
    "naïve 中文 🙂 \x00 \x7f",
    "a literal <|endoftext|> and <0x41> and </s>",
    "▁ a block ▁▁ as text",
]
CORPUS = [f"def function_{i}(value):\n    return value + {i}\n" for i in range(200)]


def huggingface_file(folder: pathlib.Path) -> pathlib.Path:
    """A small byte-level BPE with an end-of-text token, truncation and padding switched on in the file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    )
    model.enable_truncation(4)
    model.enable_padding(length=6)
    model.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture(scope="module", params=["bytes", "bpe", "unigram", "huggingface"])
def tokenizer(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    if request.param == "bytes":
        config = tokenizers.Bytes()
    elif request.param == "huggingface":
        config = HuggingFace(path=str(huggingface_file(folder)))
    else:
        config = tokenizers.SentencePiece(vocab_size=330, model_type=request.param)
    return config.build(lambda: CORPUS, folder)


def test_decoding_gives_back_the_text(tokenizer):
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_no_text_makes_the_end_of_text_token(tokenizer):
    assert all(tokenizer.eos_id not in ids for ids in tokenizer.encode_batch(TEXTS))
    assert 0 <= tokenizer.eos_id < tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.eos_id, *tokenizer.encode_batch(["ab"])[0], tokenizer.eos_id]) == "ab"


def test_json_holds_all_of_it(tokenizer):
    again = tokenizers.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert (again.vocab_size, again.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
    assert tokenizers.fingerprint(again) == tokenizers.fingerprint(tokenizer)


def test_the_saved_form_does_not_change(tmp_path):
    """Checkpoints and stores hold it, and fingerprints of runs written long ago are computed from it."""
    special = tokenizers.ByteTokenizer(["[CLS]", "[SEP]"])
    assert special.to_json() == {"kind": "bytes", "specials": ["[CLS]", "[SEP]"]}
    assert tokenizers.ByteTokenizer().to_json() == {"kind": "bytes"}
    assert tokenizers.fingerprint(special) == "cd4012f208601e23"
    assert tokenizers.fingerprint(tokenizers.ByteTokenizer()) == "a953d733df3b2b06"
    file = HuggingFace(path=str(huggingface_file(tmp_path))).build(lambda: CORPUS, tmp_path)
    assert file.to_json().keys() == {"kind", "separator", "tokenizer"}
    assert file.to_json()["separator"] == "<|endoftext|>"
    piece = tokenizers.SentencePiece(vocab_size=330).build(lambda: CORPUS, tmp_path)
    assert piece.to_json().keys() == {"kind", "model"}


def test_a_trained_model_is_cached_by_content(tmp_path):
    config = tokenizers.SentencePiece(vocab_size=330)
    first = config.build(lambda: CORPUS, tmp_path)
    files = list((tmp_path / "tokenizers").iterdir())
    files[0].write_bytes(files[0].read_bytes())
    stamp = files[0].stat().st_mtime_ns
    again = config.build(lambda: CORPUS, tmp_path)
    assert tokenizers.fingerprint(first) == tokenizers.fingerprint(again) and files[0].stat().st_mtime_ns == stamp
    config.build(lambda: CORPUS[1:], tmp_path)
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


def test_a_vocabulary_too_large_for_the_text_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="data.tokenizer.vocab_size=5000: sentencepiece cannot train"):
        tokenizers.SentencePiece(vocab_size=5000).build(lambda: CORPUS, tmp_path)


def test_huggingface_files_that_are_not_there_or_not_tokenizers(tmp_path):
    build = lambda path, **kw: HuggingFace(path=str(path), **kw).build(list, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        build(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"contains neither tokenizer.json nor vocab.json"):
        build(tmp_path)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer that tokenizers .* can read"):
        build(tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"eos_token='<nope>': the vocabulary has no <nope>"):
        build(huggingface_file(tmp_path), eos_token="<nope>")


GPT2 = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2_bpe"


@pytest.mark.skipif(not GPT2.is_dir(), reason="the GPT-2 BPE files are not on this machine")
def test_gpt2_files_encode_as_the_reference_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = HuggingFace(path=str(GPT2)).build(list, tmp_path)
    theirs = transformers.GPT2Tokenizer(str(GPT2 / "vocab.json"), str(GPT2 / "merges.txt"))
    texts = [
        *TEXTS,
        "  two  spaces\n\n\ttabs",
        "don't we'll I'M",
        "naïve café 日本語 🙂",
        "x=1;y+=2  #c",
        "",
        " ",
        "12.5%",
    ]
    texts += ["\u00a0nbsp\u2003em", pathlib.Path(__file__).read_text()]
    texts = [t for t in texts if "<|" not in t]
    assert ours.encode_batch(texts) == [theirs.encode(t) for t in texts]
    assert [ours.decode(ids) for ids in ours.encode_batch(texts)] == texts
    assert (ours.vocab_size, ours.eos_id) == (50257, 50256)


def test_a_separator_that_text_can_make_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="data.tokenizer.eos_token='</s>': ordinary text can be encoded to this token"):
        HuggingFace(path=str(tmp_path / "tokenizer.json")).build(lambda: CORPUS, tmp_path)
