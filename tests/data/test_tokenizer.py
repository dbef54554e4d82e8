"""Tokenizers: lossless, with a separator no text can make, and readable from JSON alone."""

import json
import pathlib

import pytest

from jaxnlp.data import tokenizer as tokenizers
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
        config = tokenizers.HuggingFace(path=str(huggingface_file(folder)))
    else:
        config = tokenizers.SentencePiece(vocab_size=330, model_type=request.param)
    return config.build(lambda: CORPUS, folder)


def test_decoding_gives_back_the_text(tokenizer):
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_no_text_makes_the_separator(tokenizer):
    assert all(tokenizer.separator not in ids for ids in tokenizer.encode_batch(TEXTS))
    assert 0 <= tokenizer.separator < tokenizer.vocab_size
    assert tokenizer.decode([tokenizer.separator, *tokenizer.encode_batch(["ab"])[0], tokenizer.separator]) == "ab"


def test_json_holds_all_of_it(tokenizer):
    again = tokenizers.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert (again.vocab_size, again.separator) == (tokenizer.vocab_size, tokenizer.separator)
    assert tokenizers.digest(again) == tokenizers.digest(tokenizer)


def test_a_trained_model_is_cached_by_content(tmp_path):
    config = tokenizers.SentencePiece(vocab_size=330)
    first = config.build(lambda: CORPUS, tmp_path)
    files = list((tmp_path / "tokenizers").iterdir())
    files[0].write_bytes(files[0].read_bytes())
    stamp = files[0].stat().st_mtime_ns
    again = config.build(lambda: CORPUS, tmp_path)
    assert tokenizers.digest(first) == tokenizers.digest(again) and files[0].stat().st_mtime_ns == stamp
    config.build(lambda: CORPUS[1:], tmp_path)
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


def test_a_vocabulary_too_large_for_the_text_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="data.tokenizer.vocab_size=5000: sentencepiece cannot train"):
        tokenizers.SentencePiece(vocab_size=5000).build(lambda: CORPUS, tmp_path)


def test_huggingface_files_that_are_not_there_or_not_tokenizers(tmp_path):
    build = lambda path, **kw: tokenizers.HuggingFace(path=str(path), **kw).build(list, tmp_path)
    with pytest.raises(UserError, match="no such file"):
        build(tmp_path / "none.json")
    with pytest.raises(UserError, match=r"holds neither tokenizer.json nor vocab.json"):
        build(tmp_path)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer file"):
        build(tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"separator='<nope>': the vocabulary has no <nope>"):
        build(huggingface_file(tmp_path), separator="<nope>")


GPT2 = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2_bpe"


@pytest.mark.skipif(not GPT2.is_dir(), reason="the GPT-2 BPE files are not on this machine")
def test_gpt2_files_encode_as_the_reference_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = tokenizers.HuggingFace(path=str(GPT2)).build(list, tmp_path)
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
    assert (ours.vocab_size, ours.separator) == (50257, 50256)


def test_a_separator_that_text_can_make_is_refused(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="data.tokenizer.separator='</s>': text can become this token too"):
        tokenizers.HuggingFace(path=str(tmp_path / "tokenizer.json")).build(lambda: CORPUS, tmp_path)
