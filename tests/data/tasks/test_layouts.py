"""Input transformations equal tables written by hand; BERT's equals transformers' tokenizer."""

import itertools
import json

import numpy as np
import pytest

from jaxnlp.data.records import Record
from jaxnlp.data.tasks.encoding import softmax
from jaxnlp.data.tasks.inputs import Pair, Single, Unordered
from jaxnlp.data.tasks.layout import DecoderLayout, EncoderLayout, RobertaLayout, Template, shorten
from jaxnlp.data.tasks.multiple_choice import MultipleChoiceTask
from jaxnlp.data.tasks.regression import RegressionTask
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.data.tasks.token_classification import TokenClassificationTask
from jaxnlp.data.tokenizer import ByteTokenizer
from jaxnlp.errors import UserError

NAMES = ("[CLS]", "[SEP]", "<s>", "</s>", "<start>", "<delimiter>", "<extract>")
TOKENIZER = ByteTokenizer((*NAMES, "<prompt>"))
CLS, SEP, S, E, START, DELIMITER, EXTRACT = (TOKENIZER.special_id(name) for name in NAMES)
A, B, C, D = b"ABCD"
FILL = TOKENIZER.eos_id
silent = lambda text: None
XY = SequenceClassificationTask(classes=("x", "y"))
EITHER = Unordered(first="premise", second="hypothesis")


def batch_of(examples, *fields, length=8):
    """The batch of records with these fields."""
    records = [Record(f"x:{i}", f) for i, f in enumerate(fields)]
    encoded = examples.encode(records, TOKENIZER, length, silent)
    return examples.collate(encoded, length, FILL)


def real(batch, name="tokens"):
    """Rows without their padding, whose segment is 0."""
    return [
        [row[name][: int((row["segment_ids"] > 0).sum())].tolist() for row in rows]
        for rows in (
            [{n: batch[n][i, k] for n in (name, "segment_ids")} for k in range(batch["tokens"].shape[1])]
            for i in range(len(batch["tokens"]))
        )
    ]


ONE, TWO = {"text": "AB", "label": "x"}, {"premise": "AB", "hypothesis": "C", "label": "y"}


@pytest.mark.parametrize(
    "layout, inputs, fields, tokens, token_type_ids, pool_position",
    [
        (EncoderLayout(), Single(), ONE, [[CLS, A, B, SEP]], [[0, 0, 0, 0]], [0]),
        (EncoderLayout(), Pair(), TWO, [[CLS, A, B, SEP, C, SEP]], [[0, 0, 0, 0, 1, 1]], [0]),
        (RobertaLayout(), Single(), ONE, [[S, A, B, E]], [[0, 0, 0, 0]], [0]),
        (RobertaLayout(), Pair(), TWO, [[S, A, B, E, E, C, E]], [[0] * 7], [0]),
        (DecoderLayout(), Single(), ONE, [[START, A, B, EXTRACT]], [[0] * 4], [3]),
        (DecoderLayout(), Pair(), TWO, [[START, A, B, DELIMITER, C, EXTRACT]], [[0] * 6], [5]),
        (
            DecoderLayout(),
            EITHER,
            TWO,
            [[START, A, B, DELIMITER, C, EXTRACT], [START, C, DELIMITER, A, B, EXTRACT]],
            [[0] * 6] * 2,
            [5, 5],
        ),
        (
            EncoderLayout(),
            EITHER,
            TWO,
            [[CLS, A, B, SEP, C, SEP]],
            [[0, 0, 0, 0, 1, 1]],
            [0],
        ),
    ],
)
def test_texts_as_sequences(layout, inputs, fields, tokens, token_type_ids, pool_position):
    examples = SequenceClassificationTask(inputs=inputs, layout=layout, classes=("x", "y"))
    batch = batch_of(examples, fields)
    assert real(batch) == [tokens] and real(batch, "token_type_ids") == [token_type_ids]
    assert batch["pool_positions"].tolist() == [pool_position] and batch["labels"].tolist() == [
        "xy".index(fields["label"])
    ]
    assert ("lm_targets" in batch) == isinstance(layout, DecoderLayout)


P, Q = TOKENIZER.special_id("<prompt>"), ord("?")


@pytest.mark.parametrize(
    "layout, fields, tokens, token_type_ids, pool_position",
    [
        (DecoderLayout(), ONE, [START, P, P, A, B, Q, P, EXTRACT], [0] * 8, 7),
        (DecoderLayout(), TWO, [START, P, P, A, B, DELIMITER, C, Q, P, EXTRACT], [0] * 10, 9),
        (EncoderLayout(), TWO, [CLS, P, P, A, B, SEP, C, Q, P, SEP], [0] * 6 + [1] * 4, 0),
    ],
)
def test_a_template_stands_around_the_texts_within_the_layout(layout, fields, tokens, token_type_ids, pool_position):
    template = Template(text="<prompt><prompt>{text}?<prompt>", layout=layout)
    assert template.num_places == 3 and template.place_id(TOKENIZER) == P
    examples = SequenceClassificationTask(
        inputs=Single() if fields is ONE else Pair(), layout=template, classes=("x", "y"), truncate=True
    )
    batch = batch_of(examples, fields, length=10)
    assert (
        real(batch) == [[tokens]] and real(batch, "token_type_ids") == [[token_type_ids]] and "lm_targets" not in batch
    )
    assert batch["pool_positions"].tolist() == [[pool_position]]
    long = {name: 9 * text if name != "label" else text for name, text in fields.items()}
    cut = real(batch_of(examples, long, length=10))[0][0]
    assert len(cut) == 10 and cut.count(P) == 3 and cut.count(Q) == 1
    ids = examples.encode([Record("x:0", fields)], TOKENIZER, 10, silent)[0].sequences[0]
    assert ids.tokens[ids.begins[0]] == A and (fields is ONE or ids.tokens[ids.begins[1]] == C)


def test_a_template_that_cannot_be_written_is_told():
    for changes, message in (
        ({"text": "<prompt>"}, "^text='<prompt>': expected exactly one {text}"),
        ({"place": ""}, "^place"),
    ):
        with pytest.raises(UserError, match=message):
            Template(**changes).check()
    for changes, message in (
        ({"place": "<p>", "text": "<p>{text}"}, "^data.task.layout.place='<p>': the vocabulary has no such"),
        ({"layout": EncoderLayout(cls="[C]")}, r"^data.task.layout.layout.cls='\[C\]'"),
    ):
        with pytest.raises(UserError, match=message):
            batch_of(SequenceClassificationTask(layout=Template(**changes), classes=("x", "y")), ONE)


def test_a_decoder_keeps_predicting_every_next_token_of_the_sequence():
    batch = batch_of(SequenceClassificationTask(inputs=Pair(), layout=DecoderLayout(), classes=("x", "y")), TWO)
    assert batch["lm_targets"][0, 0, :5].tolist() == [A, B, DELIMITER, C, EXTRACT]
    assert batch["lm_weights"][0, 0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "layout, tokens",
    [
        (EncoderLayout(), [[CLS, A, SEP, B, SEP], [CLS, A, SEP, C, D, SEP]]),
        (DecoderLayout(), [[START, A, DELIMITER, B, EXTRACT], [START, A, DELIMITER, C, D, EXTRACT]]),
    ],
)
def test_each_option_is_a_sequence_after_the_context(layout, tokens):
    examples = MultipleChoiceTask(num_options=2, layout=layout)
    batch = batch_of(examples, {"context": "A", "options": ["B", "CD"], "label": 1})
    assert real(batch) == [tokens] and batch["labels"].tolist() == [1]
    assert batch["pool_positions"].tolist() == ([[0, 0]] if isinstance(layout, EncoderLayout) else [[4, 5]])
    columns = MultipleChoiceTask(num_options=2, layout=layout, options=("first", "second"))
    other = batch_of(columns, {"context": "A", "first": "B", "second": "CD", "label": "1"})
    assert all((other[name] == batch[name]).all() for name in batch)


def test_a_number_is_a_float():
    batch = batch_of(RegressionTask(), {"text": "A", "label": "2.5"}, {"text": "B", "label": -1})
    assert batch["labels"].dtype == np.float32 and batch["labels"].tolist() == [2.5, -1.0]


@pytest.mark.parametrize(
    "make", [TokenClassificationTask, lambda **kw: TokenClassificationTask(layout=DecoderLayout(), **kw)]
)
def test_the_first_piece_of_each_word_has_its_tag(make):
    fields = {"words": ["AB", "C", "D"], "tags": ["n", "v", "n"]}
    batch = batch_of(make(classes=("n", "v")), fields, length=10)
    first = [CLS, SEP] if make is TokenClassificationTask else [START, EXTRACT]
    assert batch["tokens"][0, :8].tolist() == [first[0], A, B, ord(" "), C, ord(" "), D, first[1]]
    assert np.flatnonzero(batch["weights"][0]).tolist() == [1, 3, 5]
    assert batch["labels"][0, [1, 3, 5]].tolist() == [0, 1, 0]


def test_a_row_that_fills_up_a_batch_has_no_weight_and_no_labels():
    for examples in (
        SequenceClassificationTask(classes=("x", "y")),
        RegressionTask(),
        TokenClassificationTask(classes=("x", "y")),
    ):
        batch = examples.collate([None], 8, FILL)
        assert not batch["weights"].any() and not batch["labels"].any() and not batch["segment_ids"].any()


def test_batches_are_what_shapes_says():
    class Config:
        seq_len = 8

    cases = [
        (SequenceClassificationTask(inputs=Pair(), classes=("x", "y")), TWO),
        (
            SequenceClassificationTask(inputs=EITHER, layout=DecoderLayout(), classes=("x", "y")),
            TWO,
        ),
        (RegressionTask(), {"text": "A", "label": 1}),
        (
            MultipleChoiceTask(num_options=2, layout=DecoderLayout()),
            {"context": "A", "options": ["B", "CD"], "label": 1},
        ),
        (TokenClassificationTask(classes=("n", "v")), {"words": "A B", "tags": "n v"}),
    ]
    for examples, fields in cases:
        batch = batch_of(examples, fields)
        assert {n: (x.shape[1:], x.dtype) for n, x in batch.items()} == examples.shapes(Config)


@pytest.mark.parametrize("sizes", [*itertools.product(range(5), repeat=2)])
def test_the_longest_is_shortened_as_in_bert(sizes):
    texts = [list(range(size)) for size in sizes]
    for room in range(sum(sizes) + 2):
        a, b = (list(text) for text in texts)
        while len(a) + len(b) > room:  # google-research/bert truncates so
            (a if len(a) > len(b) else b).pop()
        assert [list(text) for text in shorten(texts, room)] == [a, b]


def test_nothing_is_cut_in_silence():
    fields = [{"premise": "A" * n, "hypothesis": "B" * 3, "label": "x"} for n in (1, 9, 30)]
    records = [Record(f"pairs.jsonl:{i + 1}", f) for i, f in enumerate(fields)]
    strict = SequenceClassificationTask(inputs=Pair(), classes=("x", "y"))
    with pytest.raises(UserError, match=r"data.seq_len=10: pairs.jsonl:3 has 36 tokens \(2 records are too long"):
        strict.encode(records, TOKENIZER, 10, silent)
    messages = []
    cut = SequenceClassificationTask(inputs=Pair(), classes=("x", "y"), truncate=True)
    examples = cut.encode(records, TOKENIZER, 10, messages.append)
    assert messages == ["note: 2 records truncated to data.seq_len=10 tokens; the longest, pairs.jsonl:3, had 36"]
    assert examples[2].sequences[0].tokens.tolist() == [CLS, A, A, A, A, SEP, B, B, B, SEP]
    tags = TokenClassificationTask(classes=("n", "v"), truncate=True)
    (example,) = tags.encode(
        [Record("t:1", {"words": ["AAA", "B", "C"], "tags": ["n", "v", "v"]})], TOKENIZER, 7, silent
    )
    assert example.sequences[0].tokens.tolist() == [CLS, A, A, A, ord(" "), B, SEP]
    assert example.label.places.tolist() == [1, 4] and example.label.words.tolist() == [0, 1]


@pytest.mark.parametrize(
    "examples, fields, words",
    [
        (XY, {"body": "A"}, "inputs.text='text': x:0 has no such field (it has: body)"),
        (XY, {"text": "A"}, "data.task.label='label': x:0 has no such field"),
        (XY, {"text": " ", "label": "x"}, "x:0 has an empty text"),
        (XY, {"text": 3, "label": "x"}, "x:0 holds int; expected text"),
        (
            SequenceClassificationTask(classes=("good", "bad")),
            {"text": "A", "label": "godo"},
            "label 'godo', which is not one of the classes; did you mean 'good'?",
        ),
        (XY, {"text": "A", "label": None}, "x:0 holds None; expected a label"),
        (SequenceClassificationTask(), {"text": "A", "label": "x"}, "data.task.classes=(): not resolved"),
        (RegressionTask(), {"text": "A", "label": "many"}, "x:0 holds 'many'; expected a number"),
        (RegressionTask(), {"text": "A", "label": "nan"}, "x:0 holds 'nan'; expected a number"),
        (
            MultipleChoiceTask(),
            {"context": "A", "options": ["B"], "label": 0},
            "x:0 holds ['B']; expected a list of 4 texts",
        ),
        (
            MultipleChoiceTask(num_options=2),
            {"context": "A", "options": ["B", "C"], "label": 2},
            "holds 2; expected the index of an option, 0 to 1",
        ),
        (TokenClassificationTask(classes=("x", "y")), {"words": "A B", "tags": "x"}, "x:0 has 2 words and 1 tags"),
        (
            TokenClassificationTask(classes=("x", "y")),
            {"words": [], "tags": []},
            "x:0 holds []; expected a non-empty list",
        ),
        (
            SequenceClassificationTask(layout=EncoderLayout(cls="[C]"), classes=("x", "y")),
            {"text": "A", "label": "x"},
            "layout.cls='[C]': the vocabulary has no such special token",
        ),
    ],
)
def test_a_record_that_cannot_be_used_is_named(examples, fields, words):
    with pytest.raises(UserError) as error:
        batch_of(examples, fields)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_answers_of_logits():
    record = Record(
        "x:0", {"text": "A", "label": "y", "words": "A B", "tags": "x y", "context": "A", "options": ["B", "C"]}
    )
    (example,) = SequenceClassificationTask(classes=("x", "y")).encode([record], TOKENIZER, 8, silent)
    answer = SequenceClassificationTask(classes=("x", "y")).decode(record, [example], np.log([[0.25, 0.75]]))
    assert answer == {"label": "y", "probabilities": {"x": pytest.approx(0.25), "y": pytest.approx(0.75)}}
    tags = TokenClassificationTask(classes=("x", "y"))
    (example,) = tags.encode([record], TOKENIZER, 8, silent, labelled=False)
    logits = np.zeros((1, 8, 2))
    logits[0, example.label.places[1], 1] = 1
    assert tags.decode(record, [example], logits) == tags.reference(record) == {"tags": ["x", "y"]}
    assert MultipleChoiceTask(num_options=2).decode(record, [None], np.asarray([[0.0, 0.0]]))["probabilities"] == [
        0.5,
        0.5,
    ]
    assert softmax(np.asarray([1e5, 0.0])).tolist() == [1, 0]


def test_sequences_are_those_of_transformers_bert_tokenizer(tmp_path):
    from jaxnlp.data.huggingface_tokenizer import HuggingFace

    from ...reference import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "on", "mat", "a", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    theirs.save_pretrained(tmp_path / "saved")
    ours = HuggingFace(path=str(tmp_path / "saved")).build(None, tmp_path)
    a, b = "The cat sats on a mat.", "a dog sat on the cat"
    for inputs, texts in ((Single(text="a"), (a,)), (Pair(first="a", second="b"), (a, b))):
        for length in (32, 12, 9):
            examples = SequenceClassificationTask(inputs=inputs, classes=("x", "y"), truncate=True)
            (example,) = examples.encode([Record("x:0", {"a": a, "b": b, "label": "x"})], ours, length, silent)
            wanted = theirs(*texts, truncation="longest_first", max_length=length)
            assert example.sequences[0].tokens.tolist() == wanted["input_ids"]
            assert example.sequences[0].token_type_ids.tolist() == wanted["token_type_ids"]
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())


def test_options_are_never_cut():
    fields = {"context": "abcdefgh", "options": ["long option A", "long option B"], "label": 1}
    task_ = MultipleChoiceTask(num_options=2, truncate=True)
    batch = batch_of(task_, fields, length=20)
    first, second = real(batch)[0]
    assert first == [CLS, *b"abcd", SEP, *b"long option A", SEP]
    assert second == [CLS, *b"abcd", SEP, *b"long option B", SEP]
    with pytest.raises(UserError, match=r"data\.seq_len=15: x:0 has an option of 16 tokens; set it to 16"):
        batch_of(task_, fields, length=15)


def test_a_length_that_special_tokens_fill_is_refused():
    for length in (2, 3):
        with pytest.raises(UserError, match=rf"data\.seq_len={length}: the special tokens take 3"):
            batch_of(
                SequenceClassificationTask(inputs=Pair(), classes=("x", "y"), truncate=True),
                {"premise": "a", "hypothesis": "b", "label": "x"},
                length=length,
            )


@pytest.mark.parametrize(
    "examples, fields, length, taken",
    [
        (TokenClassificationTask(classes=("n",), truncate=True), {"words": ["A"], "tags": ["n"]}, 2, 2),
        (TextPairs(truncate=True), {"source": "A", "target": "B"}, 1, 1),
    ],
)
def test_so_is_one_of_tags_and_pairs(examples, fields, length, taken):
    with pytest.raises(UserError, match=rf"data\.seq_len={length}: the special tokens take {taken}"):
        examples.encode([Record("x:0", fields)], TOKENIZER, length, silent)
