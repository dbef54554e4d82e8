"""Tasks that encode texts in parts have the ids of the joined text, whatever the tokenizer puts before a text."""

import numpy as np
import pytest

from jaxnlp.data.huggingface_tokenizer import wrap
from jaxnlp.data.pretrained_tokenizer import extended
from jaxnlp.data.source import Record
from jaxnlp.data.tasks.inputs import Pair
from jaxnlp.data.tasks.layout import EncoderLayout, Template
from jaxnlp.data.tasks.offsets import word_pieces
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tasks.token_classification import TokenClassificationTask
from jaxnlp.data.tokenizer import ByteTokenizer
from tests.data import vocabularies

SCHEMES = ("normalizer", "always", "first", "never")
SPECIAL = ("<c>", "<p>")  # one of them also ends the sequence


def opened(scheme):
    """(tokenizer, the library's, with the same special tokens)."""
    library = vocabularies.byte_fallback(scheme)
    library.add_special_tokens([*SPECIAL])
    return extended(wrap(vocabularies.byte_fallback(scheme)), SPECIAL), library


def layout(text):
    return Template(text=text, place="<p>", layout=EncoderLayout(cls="<c>", sep="</s>"))


@pytest.mark.parametrize("text", ["the {text} cat", "{text}", "c{text}the", "<p>{text} at<p> the", "the<p>the {text}"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_template_is_one_text_with_its_texts(scheme, text):
    tokenizer, library = opened(scheme)
    task = SequenceClassificationTask(classes=("a", "b"), layout=layout(text))
    words = ["at", "the c", " \u00e9 "]
    records = [Record(str(i), {"text": word, "label": "a"}) for i, word in enumerate(words)]
    for word, example in zip(words, task.encode(records, tokenizer, 64, print), strict=True):
        wanted = library.encode(text.replace("{text}", word), add_special_tokens=False).ids
        assert example.sequences[0].tokens[1:-1].tolist() == wanted
    pairs = SequenceClassificationTask(inputs=Pair(first="text", second="text"), classes=("a",), layout=layout(text))
    (example,) = pairs.encode(records[1:2], tokenizer, 64, print)
    before, after = text.split("{text}")
    first, second = (
        library.encode(part, add_special_tokens=False).ids for part in (before + words[1], words[1] + after)
    )
    (sequence,) = example.sequences
    assert sequence.tokens.tolist() == [*map(tokenizer.special_id, ["<c>"]), *first, 2, *second, 2]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_truncation_keeps_the_words_of_the_template(scheme):
    tokenizer, library = opened(scheme)
    task = SequenceClassificationTask(classes=("a",), layout=layout("the {text} cat"), truncate=True)
    (example,) = task.encode(
        [Record("0", {"text": "the" + " the" * 30, "label": "a"})], tokenizer, 12, lambda text: None
    )
    text = library.decode(example.sequences[0].tokens.tolist()[1:-1])
    assert len(example.sequences[0].tokens) == 12 and text == "the" + " the" * (12 - 4) + " cat"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_words_of_a_sentence_have_the_tokens_of_running_text(scheme):
    tokenizer, _ = opened(scheme)
    rows = [["the", "cat", "\u00e9", "that", "the"], ["at"]]
    for words, pieces in zip(rows, word_pieces(tokenizer, rows, " "), strict=True):
        assert [i for ids in pieces for i in ids] == tokenizer.encode_batch([" ".join(words)])[0]
        token_bytes = tokenizer.token_bytes()
        assert [b"".join(token_bytes[i] for i in ids).decode().strip() for ids in pieces] == words
    pieces = word_pieces(tokenizer, [["the", "c", "at", ""]], "")[0]  # a token of two words belongs to the first
    assert [i for ids in pieces for i in ids] == tokenizer.encode_batch(["thecat"])[0] and pieces[3] == []
    assert word_pieces(ByteTokenizer(), [["a", "b"]], "-") == [[[97], [45, 98]]]


def test_labels_are_at_the_first_pieces():
    tokenizer, _ = opened("normalizer")
    task = TokenClassificationTask(classes=("a", "b"), layout=EncoderLayout(cls="<c>", sep="</s>"))
    record = Record("0", {"words": ["the", "cat", "that"], "tags": ["a", "b", "a"]})
    (example,) = task.encode([record], tokenizer, 16, print)
    (sequence,) = example.sequences
    assert sequence.tokens[1:-1].tolist() == tokenizer.encode_batch(["the cat that"])[0]
    names = [tokenizer.token_bytes()[i] for i in sequence.tokens[example.label.places]]
    assert names == [b" the", b" cat", b" "] and np.array_equal(example.label.classes, [0, 1, 0])
