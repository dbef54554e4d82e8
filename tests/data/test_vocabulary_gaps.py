"""Ids with gaps: the size of a vocabulary is its largest id plus one."""

import json

import numpy as np
import pytest
import tokenizers

from jaxnlp.data import baselines
from jaxnlp.data.huggingface_tokenizer import HuggingFace, wrap
from jaxnlp.data.pretrained_tokenizer import extended, same_ids
from jaxnlp.data.text.store import build_store
from jaxnlp.data.tokenizer import from_json
from jaxnlp.errors import FieldError
from jaxnlp.interop.huggingface import _tokenizer
from tests.data import vocabularies

NAMES = ["the", "cat", "sat"]


def test_the_last_ids_count():
    library = vocabularies.words(NAMES, {"day": 60, "long": 61})
    tokenizer = wrap(library)
    assert library.get_vocab_size() == 7 and tokenizer.vocab_size == 62
    ids = tokenizer.encode_batch(["the long day"])[0]
    assert ids == [1, 61, 60] and tokenizer.decode([*ids, 30, 62]) == library.decode(ids) == "the long day"
    pieces = tokenizer.token_bytes()
    assert len(pieces) == 62 and pieces[61] == b"long" and pieces[30] is None
    again = from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.vocab_size == 62


@pytest.mark.parametrize("gaps", [{"day": 60, "long": 61}, {f"w{i}": i for i in (4, 5, 7, 8, 10)}, {}])
def test_new_tokens_come_after_the_largest_id(gaps):
    """The library counts the tokens: it would give the new ones ids that other tokens have."""
    old = wrap(vocabularies.words(NAMES, gaps))
    new = extended(old, ["<a>", "<b>"])
    assert [new.special_id(name) for name in ("<a>", "<b>")] == [old.vocab_size, old.vocab_size + 1]
    assert new.vocab_size == old.vocab_size + 2 and same_ids(old, new) and not same_ids(new, old)
    text = " ".join([*NAMES, *gaps, "<a>"])
    assert new.encode_batch([text]) == old.encode_batch([text])
    assert new.decode([1, new.special_id("<b>"), 2]).split() in (["the", "<b>", "cat"], ["the<b>cat"])
    again, more = from_json(json.loads(json.dumps(new.to_json()))), extended(new, ["<c>"])
    assert again.special_id("<b>") == old.vocab_size + 1 and again.to_json() == new.to_json()
    assert more.special_id("<c>") == new.vocab_size and same_ids(old, more) and same_ids(new, more)
    library = tokenizers.Tokenizer.from_str(more.library.to_str())  # as an export writes it
    assert library.token_to_id("<c>") == new.vocab_size and library.token_to_id("<|endoftext|>") == old.eos_id
    assert library.encode(" ".join([*NAMES, *gaps])).ids == old.encode_batch([" ".join([*NAMES, *gaps])])[0]


@pytest.mark.parametrize("kind", ["WordLevel", "BPE", "WordPiece"])
def test_new_tokens_come_after_a_special_token_beyond_the_gaps(kind, tmp_path):
    """The library gives them free ids, and those of other tokens when it loads them again."""
    vocabularies.with_gaps(kind).save(str(tmp_path / "tokenizer.json"))
    config = HuggingFace(path=str(tmp_path), special_tokens=("[MASK]", "[CLS]"))
    new = config.build(list, tmp_path)
    again = from_json(json.loads(json.dumps(new.to_json())))
    for tokenizer in (new, again):
        assert [tokenizer.special_id(name) for name in ("[MASK]", "[CLS]")] == [10, 11] and tokenizer.vocab_size == 12
        assert tokenizer.encode_batch(["ab b"]) == [[5, 1]] and tokenizer.decode([5]) == "ab" and tokenizer.eos_id == 9
        assert tokenizer.decode([10, 11]) == "[MASK][CLS]"
    library = tokenizers.Tokenizer.from_str(new.library.to_str())  # as an export writes it
    assert [library.token_to_id(name) for name in ("ab", "</s>", "[MASK]", "[CLS]")] == [5, 9, 10, 11]


def test_an_id_of_two_tokens_is_an_error():
    library = vocabularies.words(NAMES, {"day": 5, "long": 9})  # six tokens, of which <|endoftext|> is the seventh
    library = vocabularies.words(NAMES, {"day": library.token_to_id("<|endoftext|>"), "long": 9})
    with pytest.raises(FieldError, match="the library gives it the id 6 of 'day'; add it to the model's vocabulary"):
        wrap(library)
    library = vocabularies.with_gaps("WordLevel")
    library.add_special_tokens(["[MASK]"])  # 10, and 5 after a reload
    with pytest.raises(FieldError, match=r"'\[MASK\]': the library gives it the id 5 of 'ab'; add it to the model's"):
        wrap(library)


def test_a_store_holds_large_ids_in_few_tokens(tmp_path):
    tokenizer = wrap(vocabularies.words(NAMES, {"day": 70_000}))
    store = build_store(tmp_path / "store", ["the day", "day sat"], tokenizer, split="train", source_fingerprint="x")
    assert store.meta.dtype == "uint32" and store.meta.vocab_size == 70_001
    assert [ids.tolist() for ids in store.documents()] == [[1, 70_000], [70_000, 3]]
    counts = np.asarray([1, 2, 1, 2])  # the, day, sat, and the end of each document
    wanted = -(counts * np.log2(counts / 6)).sum() / len("the dayday sat")
    assert baselines.unigram_bits_per_byte(store) == pytest.approx(wanted)
    assert baselines.token_counts([np.asarray([5, 5, 1])], 3).tolist() == [0, 1, 0, 0, 0, 2]


def test_a_file_that_truncates_and_pads_does_neither(tmp_path):
    library = vocabularies.words(NAMES, {})
    library.enable_truncation(2)
    library.enable_padding(length=9)
    library.save(str(tmp_path / "tokenizer.json"))
    loaded = _tokenizer(tmp_path)
    assert loaded.truncation is None and loaded.padding is None
    assert loaded.encode("the cat sat").ids == wrap(loaded).encode_batch(["the cat sat"])[0] == [1, 2, 3]
    assert wrap(library).library.truncation is None and wrap(library).library.encode("").ids == []
    assert wrap(library).encode_spans(["the cat sat"])[0][0] == [1, 2, 3]
    assert same_ids(wrap(library), wrap(loaded)) and same_ids(wrap(library), extended(wrap(loaded), ["<new>"]))
