"""Texts that are encoded in parts have the ids of the joined text."""

import pytest
from tokenizers import normalizers

from jaxnlp.data.huggingface_tokenizer import wrap
from jaxnlp.data.joined_text import encode_between, encode_joined
from jaxnlp.data.text.sentinels import with_sentinels
from jaxnlp.data.tokenizer import ByteTokenizer, SentencePiece
from tests.data import vocabularies

ROWS = [("the c", "at"), ("the", " cat"), ("the ", "cat"), ("", "the"), ("the", ""), ("c", "at", " \u00e9", "th", "e")]
SCHEMES = ["normalizer", "always", "first", "never"]


@pytest.fixture(scope="module")
def tokenizers_by_kind(tmp_path_factory):
    texts = lambda: ["the cat sat on the mat and the dog sat by the door"] * 30
    piece = SentencePiece(vocab_size=300).build(texts, tmp_path_factory.mktemp("cache"))
    by_scheme = {scheme: wrap(vocabularies.byte_fallback(scheme)) for scheme in SCHEMES}
    others = {"bytes": ByteTokenizer(), "byte-level": wrap(vocabularies.byte_level()), "sentencepiece": piece}
    return {**by_scheme, **others}


@pytest.mark.parametrize("kind", [*SCHEMES, "bytes", "byte-level", "sentencepiece"])
def test_parts_are_those_of_the_joined_text(kind, tokenizers_by_kind):
    tokenizer = tokenizers_by_kind[kind]
    for row, parts in zip(ROWS, encode_joined(tokenizer, ROWS), strict=True):
        joined = [i for part in parts for i in part]
        assert len(parts) == len(row) and joined == tokenizer.encode_batch(["".join(row)])[0]
        first = tokenizer.encode_batch([row[0]])[0]
        assert parts[0] == first[: len(parts[0])]  # shorter if the last token crosses the end of the part


def test_a_forced_beginning_has_no_space_of_its_own(tokenizers_by_kind):
    for scheme in SCHEMES[:3]:
        tokenizer = tokenizers_by_kind[scheme]
        ((before, after),) = encode_joined(tokenizer, [("the c", "at")])
        assert tokenizer.decode([*before, *after]) == "the cat"
        assert (
            tokenizer.decode([*tokenizer.encode_batch(["the c"])[0], *tokenizer.encode_batch(["at"])[0]]) == "the c at"
        )


def test_words_that_a_vocabulary_has_only_apart_stay_apart():
    tokenizer = wrap(vocabularies.words(["the", "cat"], {}))
    assert encode_joined(tokenizer, [("the", "cat"), ("the", " cat")]) == [[[1], [2]], [[1], [2]]]


def test_words_that_a_vocabulary_has_only_joined_are_joined():
    tokenizer = wrap(vocabularies.words(["the", "cat", "at", "u", "n"], {}))
    assert encode_joined(tokenizer, [("the c", "at")]) == [[[1], [2]]]  # "the cat"; apart it is "the <unk> at"
    assert encode_joined(tokenizer, [("the", "cat"), ("u", "n"), ("the", "")]) == [[[1], [2]], [[4], [5]], [[1], []]]
    library = vocabularies.byte_level()
    library.normalizer = normalizers.NFC()
    ((before, after),) = encode_joined(wrap(library), [("the e", "\u0301")])
    assert [*before, *after] == library.encode("the e\u0301").ids


def test_text_around_special_tokens_is_encoded_as_by_the_library():
    for library in (*map(vocabularies.byte_fallback, SCHEMES), vocabularies.byte_level(), vocabularies.unigram()):
        name = next(name for name in ("<s>", "</s>", "<|endoftext|>") if library.token_to_id(name) is not None)
        special_id = library.token_to_id(name)
        for parts in (["the c", "at", " the"], ["", "the", ""], ["the"], [" ", " at"]):
            ids = encode_between(wrap(library), parts, [special_id] * (len(parts) - 1))
            assert ids == library.encode(name.join(parts), add_special_tokens=False).ids


def test_sentinels_in_a_text_are_encoded_and_decoded_as_by_the_library():
    library = vocabularies.unigram()
    tokenizer, text = with_sentinels(wrap(library)), "the <extra_id_0> me the<extra_id_1>caf\u00e9"
    (ids,) = tokenizer.encode_batch([text])
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=False)
    assert tokenizer.token_bytes()[library.token_to_id("<extra_id_1>")] == b"<extra_id_1>"
