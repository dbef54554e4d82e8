"""A pretrained tokenizer of any kind with tokens appended keeps its ids."""

import json

import pytest

from jaxnlp.data.huggingface_tokenizer import wrap
from jaxnlp.data.pretrained_tokenizer import PretrainedTokenizer, extended, same_ids
from jaxnlp.data.tokenizer import ByteTokenizer, SentencePiece, Tokenizer, fingerprint, from_json
from jaxnlp.errors import UserError

NEW = ("<start>", "<extract>", "\u00e9nd")
TEXT = "The cat <start> sat on the mat, <extract> \u00e9nd\u2581 \u65e5\u672c"


def library():
    import tokenizers

    words = {w: i for i, w in enumerate(["[UNK]", "[SEP]", "the", "cat", "s", "##at", "on", "mat", "<", ">", "start"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer()
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.add_special_tokens(["[SEP]"])
    return model


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    piece = SentencePiece(vocab_size=300, special_tokens=("[CLS]",))
    folder = tmp_path_factory.mktemp("cache")
    return {
        "bytes": ByteTokenizer(("[CLS]",)),
        "sentencepiece": piece.build(lambda: ["the cat sat on the mat and there it is"] * 9, folder),
        "huggingface": wrap(library()),
    }


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface"])
def test_new_tokens_are_the_last_and_the_others_as_they_were(kinds, kind):
    old = kinds[kind]
    new = extended(old, NEW)
    assert [new.special_id(name) for name in NEW] == [old.vocab_size + i for i in range(3)]
    assert new.vocab_size == old.vocab_size + 3 and new.eos_id == old.eos_id
    assert new.encode_batch([TEXT]) == old.encode_batch([TEXT])  # their names in a text are ordinary text
    assert new.decode(old.encode_batch([TEXT])[0]) == old.decode(old.encode_batch([TEXT])[0])
    assert same_ids(old, new) and not same_ids(new, old) and fingerprint(old) != fingerprint(new)
    again = from_json(json.loads(json.dumps(new.to_json())))
    assert fingerprint(again) == fingerprint(new) and again.special_id(NEW[2]) == new.special_id(NEW[2])
    assert extended(new, NEW[:1]) is new


def test_other_tokenizers_have_other_ids(kinds, tmp_path):
    other = SentencePiece(vocab_size=300).build(lambda: ["another text altogether, with other words"] * 9, tmp_path)
    assert not same_ids(kinds["sentencepiece"], other) and not same_ids(kinds["bytes"], other)
    assert not same_ids(ByteTokenizer(("[A]",)), ByteTokenizer()) and same_ids(
        kinds["bytes"], ByteTokenizer(("[CLS]",))
    )


def test_the_tokenizer_of_a_run_and_of_a_folder_in_hugging_faces_layout(kinds, tmp_path):
    for step, kind in ((3, "huggingface"), (20, "bytes")):
        item = tmp_path / "run" / "checkpoints" / str(step) / "tokenizer"
        item.mkdir(parents=True)
        (item / "metadata").write_text(json.dumps(kinds[kind].to_json()))
    tokenizer = PretrainedTokenizer(path=str(tmp_path / "run"), special_tokens=("<start>",)).build(None, tmp_path)
    assert tokenizer.special_id("<start>") == 258 and same_ids(kinds["bytes"], tokenizer)
    library().save(str(tmp_path / "tokenizer.json"))
    loaded = PretrainedTokenizer(path=str(tmp_path)).build(None, tmp_path)
    assert fingerprint(loaded) == fingerprint(kinds["huggingface"])
    (item / "metadata").write_text("{")
    with pytest.raises(UserError, match="metadata: damaged"):
        PretrainedTokenizer(path=str(tmp_path / "run")).build(None, tmp_path)
    with pytest.raises(UserError, match="data.tokenizer.path='nowhere': no checkpoint and no tokenizer.json"):
        PretrainedTokenizer(path="nowhere").build(None, tmp_path)


def test_a_tokenizer_of_ones_own_needs_a_way(kinds):
    class Own(ByteTokenizer):
        pass

    class Other(ByteTokenizer):
        extended = Tokenizer.extended  # as a tokenizer that does not define it

    assert extended(Own(("[CLS]",)), ["[CLS]"]).special_id("[CLS]") == 257
    with pytest.raises(UserError, match=r"Other cannot add <start>; it has no method extended\(names\)"):
        extended(Other(("[CLS]",)), ["[CLS]", "<start>"])
