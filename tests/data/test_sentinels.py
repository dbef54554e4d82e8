"""Sentinels typed and shown by name."""

from jaxnlp.data.text.sentinels import sentinels, with_sentinels
from jaxnlp.data.tokenizer import ByteTokenizer, SentencePiece


def test_there_and_back(tmp_path):
    texts = lambda: ["the cat sat on the mat and the dog sat by the door"] * 30
    piece = SentencePiece(vocab_size=320, special_tokens=sentinels(11)).build(texts, tmp_path)
    for plain in (ByteTokenizer(sentinels(11)), piece):
        tokenizer = with_sentinels(plain)
        text = "<extra_id_0>the <extra_id_10><extra_id_1> mat <extra_id_11> é <extra_id_"
        ids = tokenizer.encode_batch([text, "", "<extra_id_3>"])
        assert [tokenizer.decode(row) for row in ids] == [text, "", "<extra_id_3>"]
        names = [plain.special_id(f"<extra_id_{i}>") for i in (0, 10, 1)]
        assert [i for i in ids[0] if i in names] == names and ids[2] == [plain.special_id("<extra_id_3>")]
        token_bytes = tokenizer.token_bytes()
        assert token_bytes[names[1]] == b"<extra_id_10>" and token_bytes[tokenizer.eos_id] is None
        assert tokenizer.decode([*ids[0], tokenizer.eos_id]) == text


def test_a_vocabulary_without_sentinels_stays_as_it_is():
    plain = ByteTokenizer()
    assert with_sentinels(plain) is plain
