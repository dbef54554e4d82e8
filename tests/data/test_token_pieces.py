"""The text of each token follows from the tokenizer's kind, and agrees with the text that the tokenizer encodes."""

import json

import numpy as np
import pytest
import tokenizers

from jaxnlp.data.huggingface_tokenizer import wrap
from jaxnlp.data.text.word_boundaries import Words
from jaxnlp.data.token_display import token_labels
from jaxnlp.data.token_pieces import spelling
from tests.data import vocabularies

TEXT = "\u00e9 caf\u00e9\n\u00fc\u00bd \U0001f600 \u00c3\u00a9 <0x0A>"


@pytest.mark.parametrize(
    ("library", "prefix"),
    [
        (vocabularies.byte_level(), ""),
        (vocabularies.byte_fallback(), " "),
        (vocabularies.byte_fallback("always"), " "),
        (vocabularies.byte_fallback("first"), " "),
        (vocabularies.byte_fallback("never"), ""),
    ],
    ids=["byte-level", "prepend", "always", "first", "never"],
)
def test_pieces_join_to_the_bytes_of_the_text(library, prefix):
    tokenizer = wrap(library)
    pieces, (ids,) = tokenizer.token_bytes(), tokenizer.encode_batch([TEXT])
    assert b"".join(pieces[i] for i in ids) == (prefix + TEXT).encode()
    assert "".join(token_labels(tokenizer, tokenizer.encode_batch(["caf\u00e9 \n"])[0])) in (
        "\u2423caf\u00e9\u2423\u21b5",
        "caf\u00e9\u2423\u21b5",
        "caf<C3><A9>\u2423\u21b5",
    )


def test_a_letter_is_a_byte_in_a_byte_level_vocabulary_only():
    for library, wanted in (
        (vocabularies.byte_level(), b"\xe9"),
        (vocabularies.byte_fallback(), "\u00e9".encode()),
        (vocabularies.word_pieces(), "\u00e9".encode()),
        (vocabularies.unigram(), "\u00e9".encode()),
    ):
        assert wrap(library).token_bytes()[library.token_to_id("\u00e9")] == wanted
    for library, wanted in (
        (vocabularies.byte_fallback(), b"\n"),
        (vocabularies.word_pieces(), b"<0x0A>"),  # no byte fallback
        (vocabularies.unigram(), b"<0x0A>"),
    ):
        assert wrap(library).token_bytes()[library.token_to_id("<0x0A>")] == wanted
    library = vocabularies.byte_level()  # an added token is plain text
    assert wrap(library).token_bytes()[library.token_to_id("\u65e5\u672c")] == "\u65e5\u672c".encode()
    assert wrap(library).token_bytes()[library.token_to_id("<|endoftext|>")] is None


def test_other_marks_of_spaces_and_of_the_ends_of_words():
    model, text = {"type": "BPE", "vocab": {}}, lambda **fields: spelling({"model": model, **fields}).text
    assert text(decoder={"type": "Metaspace", "replacement": "_"})("_a\u2581") == " a\u2581".encode()
    assert text(decoder={"type": "BPEDecoder", "suffix": "</w>"})("cat</w>") == b"cat "
    pattern = {"Regex": "[_~]"}
    assert text(decoder={"type": "Replace", "pattern": pattern, "content": " "})("_a~") == b" a "
    clip = {**model, "end_of_word_suffix": "</w>"}
    stages = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}}
    assert spelling({"model": clip, **stages}).text("\u00c3\u00a9</w>") == "\u00e9 ".encode()


def test_words_end_where_the_kind_of_the_tokenizer_ends_them():
    def starts(library, text):
        tokenizer = wrap(library)
        ids = np.asarray(tokenizer.encode_batch([text])[0])
        return np.flatnonzero(~Words(tokenizer).continues(ids)).tolist(), len(ids)

    assert starts(vocabularies.word_pieces(), "the caf\u00e9s \u00e9") == ([0, 1, 3], 4)
    assert starts(vocabularies.byte_fallback(), "the \u00e9t\u00e9 cat") == ([0, 1, 2, 5], 6)  # the mark alone is one
    assert starts(vocabularies.words(["the", "cat"], {}), "the cat the") == ([0, 1, 2], 3)
    assert starts(vocabularies.unigram(), "the caf\u00e9s") == ([0, 1], 3)


def test_the_file_alone_decides(tmp_path):
    library = vocabularies.byte_fallback()
    library.save(str(tmp_path / "tokenizer.json"))
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    assert spelling(fields).text("\u2581\u00e9") == " \u00e9".encode()
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).decode([3 + 0xC3, 3 + 0xA9]) == "\u00e9"
    assert b"".join(spelling(fields).text(f"<0x{b}>") for b in ("C3", "a9")) == "\u00e9".encode()
