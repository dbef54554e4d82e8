"""Spans from characters to tokens and back for every tokenizer; windows; scores of answers."""

import itertools

import numpy as np
import pytest

from jaxnlp.data.huggingface_tokenizer import byte_level_bpe, wrap
from jaxnlp.data.records import Record
from jaxnlp.data.tasks.offsets import Offsets
from jaxnlp.data.tasks.span_extraction import SpanExtractionTask, best_span
from jaxnlp.data.tokenizer import ByteTokenizer, SentencePiece
from jaxnlp.errors import UserError

SPECIALS = ("[CLS]", "[SEP]")
BYTES = ByteTokenizer(SPECIALS)
CONTEXT = "Zo\u00eb met Bj\u00f6rn in Malm\u00f6, \u65e5\u672c, on 12 May \U0001f600."
silent = lambda text: None


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    text = "Zoe met Bjorn in Malmo on May the cat sat here and there is more of it to be read"
    ours = SentencePiece(vocab_size=300, special_tokens=SPECIALS).build(lambda: [text] * 20, folder)
    import tokenizers as library

    words = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "zo",
        "##e",
        "met",
        "b",
        "##jo",
        "##rn",
        "in",
        "mal",
        "##mo",
        ",",
        "on",
        "12",
        ".",
    ]
    wordpiece = library.Tokenizer(library.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    wordpiece.normalizer = library.normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    wordpiece.add_special_tokens(["[CLS]", "[SEP]", "[UNK]"])
    return {"bytes": BYTES, "sentencepiece": ours, "wordpiece": wrap(wordpiece, "[SEP]")}


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "wordpiece"])
def test_offsets_cover_the_text_in_order(tokenizers, kind):
    tokenizer = tokenizers[kind]
    (pieces,) = Offsets(tokenizer)([CONTEXT])
    assert pieces.ids == tokenizer.encode_batch([CONTEXT])[0]
    covered = {i for a, b in zip(pieces.starts, pieces.stops, strict=True) for i in range(a, b)}
    assert {i for i, c in enumerate(CONTEXT) if not c.isspace()} <= covered
    assert (np.diff(pieces.starts) >= 0).all() and (pieces.stops > pieces.starts).all()
    for i, (start, stop) in enumerate(zip(pieces.starts, pieces.stops, strict=True)):
        if kind == "bytes":
            assert pieces.ids[i] in CONTEXT[start:stop].encode()


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "wordpiece"])
@pytest.mark.parametrize(
    "answer", ["Zo\u00eb", "Bj\u00f6rn", "\u65e5\u672c", "12", "Malm\u00f6, \u65e5\u672c, on 12 May \U0001f600."]
)
def test_an_answer_comes_back_as_its_text(tokenizers, kind, answer):
    answers = {"text": [answer], "answer_start": [CONTEXT.index(answer)]}
    record = Record("q:1", {"question": "Who?", "context": CONTEXT, "answers": answers})
    examples = SpanExtractionTask(longest_answer=40)
    (example,) = examples.encode([record], tokenizers[kind], 80, silent)
    place, tokens = example.label, example.sequences[0].tokens
    assert 0 < place.first <= place.start <= place.end < len(tokens) - 1
    logits = np.zeros((1, 80, 2))
    logits[0, place.start, 0] = logits[0, place.end, 1] = 9.0
    decoded = examples.decode(record, [example], logits)
    assert decoded["answer"] == answer and decoded["start"] == CONTEXT.index(answer) and decoded["score"] > 0


def test_an_answer_within_a_token_takes_the_whole_token(tokenizers):
    record = Record("q:1", {"question": "Who?", "context": "met Bjorn", "answers": [{"text": "jo", "answer_start": 5}]})
    (example,) = SpanExtractionTask().encode([record], tokenizers["wordpiece"], 20, silent)
    assert example.label.characters(example.label.start, example.label.end) == (5, 7)
    record.fields["answers"] = [{"text": "o", "answer_start": 6}]
    (example,) = SpanExtractionTask().encode([record], tokenizers["wordpiece"], 20, silent)
    assert example.label.characters(example.label.start, example.label.end) == (5, 7)


def test_no_answer_is_the_cls():
    for answers in (None, [], {"text": [], "answer_start": []}):
        record = Record("q:1", {"question": "Who?", "context": "no one", "answers": answers})
        (example,) = SpanExtractionTask().encode([record], BYTES, 20, silent)
        batch = SpanExtractionTask().collate([example, None], 20, BYTES.eos_id)
        assert batch["starts"].tolist() == batch["ends"].tolist() == [0, 0]
        assert np.flatnonzero(batch["answer_mask"][0]).tolist() == [0, *range(6, 12)]
        assert np.flatnonzero(batch["answer_mask"][1]).tolist() == [0] and batch["weights"].tolist() == [1, 0]
        logits = np.zeros((1, 20, 2))
        logits[0, 0] = 1.0
        assert SpanExtractionTask().decode(record, [example], logits)["answer"] == ""


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_windows_hold_every_token_and_every_short_answer_once_whole(stride):
    context, examples = "abcdefghijklmnopqrstuvwxyz", SpanExtractionTask(stride=stride)
    for start in range(0, 26, 5):
        answers = {"text": [context[start : start + 2]], "answer_start": [start]} if start < 25 else None
        record = Record("q:1", {"question": "?", "context": context, "answers": answers})
        windows = examples.encode([record], BYTES, 14, silent)
        room = 14 - 3 - 1
        texts = [BYTES.decode(w.sequences[0].tokens[w.label.first : -1]) for w in windows]
        assert all(len(text) <= room for text in texts) and texts[0] == context[:room] and texts[-1].endswith("z")
        assert len(texts) == 1 + -(-(26 - room) // stride)
        for window, text in zip(windows, texts, strict=True):
            whole = answers is not None and answers["text"][0] in text
            assert (window.label.start > 0) == whole
            if whole:
                place = window.label.characters(window.label.start, window.label.end)
                assert place == (start, start + 2)


def test_the_best_window_answers():
    record = Record("q:1", {"question": "?", "context": "abcdefghijklmnopqrstuvwxyz"})
    windows = SpanExtractionTask(stride=5).encode([record], BYTES, 14, silent)
    logits = np.zeros((len(windows), 14, 2))
    logits[:, 0] = 1.0
    logits[1, 5, 0] = logits[1, 6, 1] = 4.0
    answer = SpanExtractionTask(stride=5).decode(record, windows, logits)
    assert answer == {"answer": "hi", "start": 7, "score": pytest.approx(6.0)}


def test_the_best_span_is_the_best_of_all_pairs():
    random = np.random.default_rng(0)
    for _ in range(20):
        logits, may = random.normal(size=(9, 2)), random.random(9) > 0.4
        may[0] = True
        pairs = [(a, b) for a, b in itertools.product(range(9), repeat=2) if a <= b < a + 3 and may[a] and may[b]]
        best = max(pairs, key=lambda p: logits[p[0], 0] + logits[p[1], 1])
        start, end, score = best_span(logits, may, longest=3)
        assert (start, end) == best and score == pytest.approx(logits[best[0], 0] + logits[best[1], 1])


@pytest.mark.parametrize(
    "fields, length, words",
    [
        ({"answers": [{"text": "x", "answer_start": 0}]}, 40, "q:1: the context has 'n' at 0; expected 'x'"),
        ({"answers": [{"text": "no", "answer_start": -6}]}, 40, "q:1: the context has"),
        ({"answers": {"text": ["no"]}}, 40, 'expected {"text": [...], "answer_start": [...]}'),
        ({"answers": "no"}, 40, "q:1 holds no; expected"),
        ({"context": "no " * 30}, 40, "q:1 has 96 tokens; set it to 96, or read contexts in overlapping windows with"),
        ({"question": "q" * 50}, 40, "q:1 has 59 tokens; set it to 59"),
    ],
)
def test_bad_records(fields, length, words):
    record = Record("q:1", {"question": "Who", "context": "no one", "answers": [], **fields})
    with pytest.raises(UserError) as error:
        SpanExtractionTask().encode([record], BYTES, length, silent)
    assert words in str(error.value)


def test_a_stride_may_not_leap_over_tokens():
    record = Record("q:1", {"question": "Who", "context": "no " * 30})
    with pytest.raises(UserError, match="data.task.stride=40: q:1 leaves 34 tokens for the context"):
        SpanExtractionTask(stride=40).encode([record], BYTES, 40, silent)


def test_a_byte_level_bpe_has_the_characters_of_its_text():
    import pathlib

    folder = pathlib.Path(__file__).resolve().parents[3].parent / "shared" / "data" / "gpt2_bpe"
    if not folder.is_dir():
        pytest.skip("needs GPT-2's vocabulary files")
    (pieces,) = Offsets(wrap(byte_level_bpe(folder)))([CONTEXT])
    covered = {i for a, b in zip(pieces.starts, pieces.stops, strict=True) for i in range(a, b)}
    assert covered == set(range(len(CONTEXT)))
