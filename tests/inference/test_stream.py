"""Streamed text: complete characters, no part of a stop string, and independent of the chunk size."""

import pytest
import tokenizers

from jaxnlp.data.huggingface_tokenizer import wrap
from jaxnlp.data.tokenizer import ByteTokenizer, SentencePiece
from jaxnlp.errors import FieldError
from jaxnlp.inference.stream import TextStream
from tests.data import vocabularies

BYTES = ByteTokenizer()


def pushed(text_or_ids, sizes, stop=(), tokenizer=BYTES, before=()):
    """The pieces of text that a stream yields when ids arrive in chunks."""
    ids = tokenizer.encode_batch([text_or_ids])[0] if isinstance(text_or_ids, str) else list(text_or_ids)
    stream, pieces = TextStream(tokenizer.decode, before, stop), []
    while ids:
        size = next(sizes)
        pieces.append(stream.push(ids[:size]))
        ids = ids[size:]
    return [*pieces, stream.close()], stream


def test_characters_come_whole():
    text = "héllo €5 \U0001f600!"
    pieces, _ = pushed(text, iter([1] * 99))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    assert pieces[1] == "" and pieces[2] == "é"


def test_bytes_that_make_no_character_come_at_the_end_or_with_what_follows():
    pieces, _ = pushed([*b"a\xe2\x82"], iter([1] * 9))
    assert pieces[:-1] == ["a", "", ""] and pieces[-1].strip("\ufffd") == "" != pieces[-1]
    pieces, _ = pushed([*b"a\xe2b"], iter([1] * 9))
    assert pieces == ["a", "", "\ufffdb", ""]


@pytest.mark.parametrize("stop", [["END"], ["\n\n", "END"], ["é"], ["ENDE", "NDX"]])
def test_a_stop_string_is_never_given_out_and_ends_the_text_however_it_is_cut(stop, rng):
    text = "aEENxénd\nbENDX\n\nrest END"
    wanted = min((text.find(word) for word in stop if word in text), default=len(text))
    ends = set()
    for _ in range(20):
        pieces, stream = pushed(text, iter(rng.integers(1, 5, 99)), stop)
        assert "".join(pieces) == stream.text == text[:wanted]
        ends.add(stream.ended_at)
    assert len(ends) == 1  # the token that completed it


def test_what_may_become_a_stop_string_waits_until_it_does_not():
    pieces, _ = pushed("ENENDx", iter([1] * 9), ["ENDING"])
    assert pieces == ["", "", "EN", "", "", "ENDx", ""]
    pieces, stream = pushed("abEN", iter([1] * 9), ["END"])
    assert pieces == ["a", "b", "", "", "EN"] and stream.ended_at is None


def test_a_stop_string_within_a_token_and_over_several():
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "<|endoftext|>": 5}, [])
    )
    model.add_special_tokens(["<|endoftext|>"])
    model.decoder = tokenizers.decoders.Fuse()
    tokenizer = wrap(model)
    assert tokenizer.decode([3, 4]) == "abbc"
    for ids, count, text in (([0, 3, 4, 0], 3, "aa"), ([2, 4, 3, 4], 4, "cbca"), ([3, 0, 1, 1, 0], 4, "aba")):
        _, stream = pushed(ids, iter([2] * 9), ["bb"], tokenizer)
        assert (stream.ended_at, stream.text) == (count, text)


def test_a_stop_string_before_the_bytes_of_a_character_ends_the_text():
    tokenizer = wrap(vocabularies.byte_fallback())
    ids = [tokenizer.encode_batch([text])[0] for text in ("the", "\n\U0001f600 cat")]
    ids = [*ids[0], *[i for i in ids[1] if tokenizer.token_bytes()[i] != b" "]]  # one byte each for the last five
    assert tokenizer.decode(ids[:6]) == "the\n\U0001f600"
    for size in range(1, 8):
        pieces, stream = pushed(ids, iter([size] * 99), ["\n"], tokenizer)
        assert (stream.ended_at, "".join(pieces), stream.text) == (2, "the", "the")


def test_forced_text_is_given_out_and_stops_nothing():
    stream = TextStream(BYTES.decode, stop=["\n", "ab"])
    assert stream.force(b"x\na") == "x\na"
    assert stream.push(b"b") == "b" and stream.ended_at is None  # the stop string began in the forced text
    assert stream.push(b"c\nd") == "c" and stream.ended_at == 6


def test_what_stands_before_decides_how_new_tokens_decode(tmp_path):
    texts = lambda: ["the cat sat on the mat and the dog sat by the door"] * 30
    model = SentencePiece(vocab_size=300).build(texts, tmp_path)
    metaspace = wrap_metaspace()
    for tokenizer in (model, metaspace):
        ids = tokenizer.encode_batch(["the cat sat on the mat"])[0]
        for cut in range(1, len(ids)):
            pieces, _ = pushed(ids[cut:], iter([1] * 99), (), tokenizer, before=ids[:cut])
            assert tokenizer.decode(ids[:cut]) + "".join(pieces) == "the cat sat on the mat"


def wrap_metaspace():
    """Words as Llama's tokenizer has them: decoding drops the first space."""
    words = {"<unk>": 0, "\u2581the": 1, "\u2581cat": 2, "\u2581sat": 3, "\u2581on": 4, "\u2581mat": 5}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.decoder = tokenizers.decoders.Metaspace()
    model.add_special_tokens(["<|endoftext|>"])
    return wrap(model)


@pytest.mark.parametrize("stop", ["END", [""], [3]])
def test_bad_stop_strings_are_refused(stop):
    with pytest.raises(FieldError, match="stop="):
        TextStream(BYTES.decode, stop=stop)
