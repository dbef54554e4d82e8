"""No text becomes a special token, whatever the vocabulary of the model holds; other texts keep their ids."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from jaxnlp.data.control_tokens import unreachable
from jaxnlp.data.huggingface_tokenizer import HuggingFaceTokenizer, wrap
from jaxnlp.errors import FieldError

CORPUS = ["the cat sat on a mat and saw one small red house </s > < pad> extra _id_0 < / s > <>"] * 50
TEXTS = [
    *("</s>", "a </s> cat", "the</s>", "<pad><extra_id_0>", "<unk> red", "< / s>", "</s", "<extra_id_1>", "the cat"),
    *("Ж </s>", "</s></s>", "one <pad>small"),
]


@pytest.fixture(scope="module")
def t5():
    """(sentencepiece's Unigram model with T5's control tokens, the same as the library's tokenizer)."""
    out = io.BytesIO()
    options = {"control_symbols": ["<extra_id_0>", "<extra_id_1>"], "minloglevel": 2, "hard_vocab_limit": False}
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 60, "model_type": "unigram"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, normalization_rule_name="identity", **ids, **options
    )
    theirs = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    pieces = [(theirs.id_to_piece(i), theirs.get_score(i)) for i in range(theirs.get_piece_size())]
    library = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    library.normalizer = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    return theirs, library


@pytest.mark.parametrize("listed", [True, False])  # in the file's added tokens, as transformers writes them
def test_control_names_of_a_unigram_vocabulary_are_special_and_text_is_encoded_as_sentencepiece_does(t5, listed):
    theirs, library = t5
    names = ["</s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_1>"]
    if listed:
        library = tokenizers.Tokenizer.from_str(library.to_str())
        library.add_special_tokens(names)
    before = library.to_str()
    tokenizer = wrap(library)
    assert library.to_str() == before
    assert tokenizer.eos_id == 1 and theirs.get_score(1) == 0
    assert [tokenizer.special_id(name) for name in names] == [theirs.piece_to_id(name) for name in names]
    again = HuggingFaceTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    for text in TEXTS:
        wanted = [theirs.encode(text)]
        assert tokenizer.encode_batch([text]) == again.encode_batch([text]) == wanted, text
        assert not {0, 1, *map(tokenizer.special_id, names[3:])} & {*wanted[0]}, text
        assert [ids for ids, _ in tokenizer.encode_spans([text])] == wanted
    assert tokenizer.token_bytes()[1] is None and tokenizer.vocab_size == len(library.get_vocab())
    ids = [tokenizer.special_id("<extra_id_0>"), *tokenizer.encode_batch(["the cat"])[0]]
    assert tokenizer.decode(ids) == "<extra_id_0> the cat"


WORDS = ["<unk>", "</s>", "a", "b", "</s", ">", "<", "/", "s", "Ġ", "ab"]
VOCAB = {word: i for i, word in enumerate(WORDS)}
LONGER = {**VOCAB, "</": 11}
MERGES = [("a", "b"), ("<", "/"), ("</", "s"), ("</s", ">")]
MODELS = {
    "words": (models.WordLevel(VOCAB, "<unk>"), pre_tokenizers.WhitespaceSplit(), [0]),
    "word pieces": (models.WordPiece(VOCAB, unk_token="<unk>"), pre_tokenizers.WhitespaceSplit(), [0]),
    "merged": (models.BPE(LONGER, MERGES, unk_token="<unk>"), pre_tokenizers.WhitespaceSplit(), [4, 5]),
    "merged, ignoring merges": (
        models.BPE(LONGER, MERGES[:3], unk_token="<unk>", ignore_merges=True), pre_tokenizers.WhitespaceSplit(), [4, 5],
    ),
    "not merged": (models.BPE(LONGER, MERGES[:3], unk_token="<unk>"), pre_tokenizers.WhitespaceSplit(), [4, 5]),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_holds_the_name_of_a_special_token_does_not_make_it_of_text(kind):
    model, pre_tokenizer, wanted = MODELS[kind]
    library = tokenizers.Tokenizer(model)
    library.pre_tokenizer = pre_tokenizer
    library.add_special_tokens(["<unk>", "</s>", "<added>"])
    tokenizer = wrap(library)
    assert (tokenizer.eos_id, tokenizer.special_id("<added>")) == (1, len(library.get_vocab()) - 1)
    assert tokenizer.encode_batch(["</s>"]) == [wanted]  # of the pieces, or unknown
    library.encode_special_tokens = True
    for text in ("a b", "ab", "a Ж", "s", "<added>"):
        assert tokenizer.encode_batch([text])[0] == library.encode(text, add_special_tokens=False).ids, text
    assert tokenizer.decode([2, tokenizer.special_id("<unk>")]) == library.decode([2, 0], skip_special_tokens=False)


def test_a_vocabulary_whose_special_tokens_no_text_can_become_is_unchanged():
    library = tokenizers.Tokenizer(MODELS["not merged"][0])
    library.add_special_tokens(["</s>", "<added>"])
    fields = json.loads(library.to_str())
    assert unreachable(fields) is fields


def test_the_unknown_token_cannot_end_texts():
    library = tokenizers.Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, "</s>"))
    library.add_special_tokens(["</s>"])
    with pytest.raises(FieldError, match="ordinary text can be encoded to this token"):
        wrap(library)
