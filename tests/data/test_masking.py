"""Masked words, sentence pairs and span corruption: rates, tokens that are never chosen, and resumable draws."""

import collections
import string

import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig, TrainBatches, eval_batches
from jaxnlp.data.text.masking import Masked, WholeWords
from jaxnlp.data.text.sentences import IS_NEXT, NOT_NEXT, FullSentences, SentencePairs
from jaxnlp.data.text.sentinels import sentinels
from jaxnlp.data.text.span_corruption import SpanCorruption, corrupt
from jaxnlp.data.text.store import build_store
from jaxnlp.data.text.word_boundaries import Words
from jaxnlp.data.tokenizer import Bytes, ByteTokenizer
from jaxnlp.errors import FieldError, UserError

NAMES = ("[CLS]", "[SEP]", "[MASK]")
TOKENIZER = ByteTokenizer((*NAMES, *sentinels(8)))
CLS, SEP, MASK = (TOKENIZER.special_id(name) for name in NAMES)
DOCUMENTS = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Document d has words of the letter d and numbers, so that each token identifies its document."""
    random = np.random.default_rng(0)
    texts = []
    for d in range(DOCUMENTS):
        words = [string.ascii_letters[d] * random.integers(1, 7) for _ in range(random.integers(20, 60))]
        texts.append(" ".join(words))
    return build_store(
        tmp_path_factory.mktemp("s") / "store", texts, TOKENIZER, split="train", source_fingerprint="test"
    )


def config(examples, **fields):
    return DataConfig(**{"task": examples, "seq_len": 48, "batch_size": 8, "prefetch_threads": 0, **fields})


def batches(store, examples, count, position=0, **fields):
    stream = TrainBatches(store, config(examples, **fields), position, tokenizer=TOKENIZER)
    return [next(stream) for _ in range(count)]


def joined(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_of_the_chosen_tokens_80_10_10_are_masked_random_and_kept(store):
    b = joined(batches(store, Masked(), 120))
    real = b["weights"] > 0
    new = np.take_along_axis(b["tokens"], b["masked_positions"], 1)[real]
    old = b["targets"][real]
    share = lambda x: x.mean()
    assert share(new == MASK) == pytest.approx(0.8, abs=0.03)
    # A random token equals the original with probability 1/256.
    assert share(new == old) == pytest.approx(0.1, abs=0.02)
    assert share((new != MASK) & (new != old)) == pytest.approx(0.1, abs=0.02)
    assert new[new != MASK].max() < 256  # and never a special one
    ordinary = (b["segment_ids"] > 0) & ~np.isin(b["tokens"], [CLS, SEP])
    assert real.sum() / ordinary.sum() == pytest.approx(0.15, abs=0.01)


def test_special_tokens_and_padding_are_never_chosen_and_no_place_twice(store):
    for examples in (Masked(rate=0.9), Masked(text=FullSentences(), rate=0.9)):
        b = joined(batches(store, examples, 20))
        real = b["weights"] > 0
        assert not np.isin(b["targets"][real], [CLS, SEP, TOKENIZER.eos_id, MASK]).any()
        assert (np.take_along_axis(b["segment_ids"], b["masked_positions"], 1)[real] == 1).all()
        for places, is_real in zip(b["masked_positions"], real, strict=True):
            assert len(set(places[is_real])) == is_real.sum() > 0


def test_the_text_is_all_there_but_for_the_masks(store):
    b = joined(list(eval_batches(store, config(Masked(text=FullSentences()), batch_size=4), tokenizer=TOKENIZER)))
    tokens = b["tokens"].copy()
    real = b["weights"] > 0
    rows = np.broadcast_to(np.arange(len(tokens))[:, None], real.shape)
    tokens[rows[real], b["masked_positions"][real]] = b["targets"][real]
    inner = (b["segment_ids"] > 0) & ~np.isin(tokens, [CLS, SEP])
    assert tokens[inner].tolist() == store.read(0, len(store)).tolist()


def pairs(b):
    """(A, B, label) of each row, masks undone."""
    for i in range(len(b["tokens"])):
        row, real = b["tokens"][i].copy(), b["weights"][i] > 0
        row[b["masked_positions"][i][real]] = b["targets"][i][real]
        inside = b["segment_ids"][i] > 0
        a, other = row[inside & (b["token_type_ids"][i] == 0)], row[inside & (b["token_type_ids"][i] == 1)]
        assert a[0] == CLS and a[-1] == SEP and other[-1] == SEP
        yield a[1:-1].tolist(), other[:-1].tolist(), int(b["next_sentence"][i])


def test_half_the_pairs_follow_and_the_others_come_from_another_document(store):
    row = store.read(0, len(store)).tolist()
    text = bytes(t if t < 256 else 0 for t in row)
    labels, lengths = collections.Counter(), collections.defaultdict(list)
    for a, b, label in pairs(joined(batches(store, Masked(), 120))):
        labels[label] += 1
        lengths[label].append(len(b))
        letter = lambda tokens: {t for t in tokens if t != 32}
        if set(a) == {32} or set(b) == {32}:
            continue  # nothing but the space between two words
        assert len(letter(a)) == len(letter(b)) == 1
        if label == IS_NEXT:
            assert bytes(a + b) in text
        else:
            assert letter(a) != letter(b)
        assert not (a[-1] > 32 and b[0] > 32 and label == IS_NEXT)  # no word is cut in two
    assert labels[IS_NEXT] / (labels[IS_NEXT] + labels[NOT_NEXT]) == pytest.approx(0.5, abs=0.05)
    # The length of B does not depend on the label.
    assert np.mean(lengths[IS_NEXT]) == pytest.approx(np.mean(lengths[NOT_NEXT]), rel=0.06)


def test_a_word_that_fills_an_input_leaves_room_for_the_other_text(tmp_path):
    texts = ["a" * 13 * n for n in range(1, 6)]  # pieces of one word each, which cannot be cut
    made = build_store(tmp_path / "store", texts, TOKENIZER, split="train", source_fingerprint="test")
    for batch in batches(made, Masked(text=SentencePairs(short_rate=0.0)), 4, seq_len=16):
        assert (batch["next_sentence"] == NOT_NEXT).all() and ((batch["tokens"] == SEP).sum(1) == 2).all()


def test_whole_words_are_chosen_together(store):
    words, cut = Words(TOKENIZER), 0
    b = joined(batches(store, Masked(text=FullSentences(), choose=WholeWords()), 40))
    for i in range(len(b["tokens"])):
        row, real = b["tokens"][i].copy(), b["weights"][i] > 0
        chosen = set(b["masked_positions"][i][real].tolist())
        row[b["masked_positions"][i][real]] = b["targets"][i][real]
        for span in words.spans(row):
            assert len(chosen & set(span.tolist())) in (0, len(span))
            cut += len(span) > 1 and bool(chosen & set(span.tolist()))
    assert cut > 50


def masks(b):
    """The set of masks of each text."""
    by_text = collections.defaultdict(set)
    for i in range(len(b["tokens"])):
        row, real = b["tokens"][i].copy(), b["weights"][i] > 0
        row[b["masked_positions"][i][real]] = b["targets"][i][real]
        by_text[row.tobytes()].add(b["masked_positions"][i][real].tobytes())
    return by_text


def test_static_masks_never_change_and_dynamic_ones_do(store):
    full = FullSentences()
    size = len(FullSentences().open(store, Words(TOKENIZER), CLS, SEP, 48))
    epochs = lambda copies, n: batches(store, Masked(text=full, static_copies=copies), n * size, batch_size=1)
    assert {len(m) for m in masks(joined(epochs(1, 3))).values()} == {1}
    assert {len(m) for m in masks(joined(epochs(2, 4))).values()} == {2}
    assert min(len(m) for m in masks(joined(epochs(0, 4))).values()) >= 3


@pytest.mark.parametrize("examples", [Masked(), SpanCorruption()])
def test_a_resumed_stream_draws_the_same(store, examples):
    whole = batches(store, examples, 7)
    rest = batches(store, examples, 3, position=4 * 8)
    for a, b in zip(whole[4:], rest, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    half = TrainBatches(store, config(examples), 0, range(4, 8), TOKENIZER)
    np.testing.assert_array_equal(next(half)["targets"], whole[0]["targets"][4:])


def test_shapes_are_those_of_the_batches(store):
    for examples in (Masked(), Masked(text=FullSentences()), SpanCorruption()):
        (batch,) = batches(store, examples, 1)
        shapes = examples.shapes(config(examples))
        assert {k: ((8, *shape), np.dtype(dtype)) for k, (shape, dtype) in shapes.items()} == {
            k: (x.shape, x.dtype) for k, x in batch.items()
        }


def test_an_evaluation_has_every_example_once_and_rows_of_no_weight(store):
    for examples in (Masked(), SpanCorruption()):
        setup = config(examples, batch_size=7)
        first = list(eval_batches(store, setup, tokenizer=TOKENIZER))
        again = list(eval_batches(store, setup, tokenizer=TOKENIZER))
        reader = examples.open(store, TOKENIZER, setup)
        weights = joined(first)["weights"].sum(1)
        assert (weights[: len(reader)] > 0).all() and (weights[len(reader) :] == 0).all() and len(reader) % 7
        np.testing.assert_array_equal(joined(first)["targets"], joined(again)["targets"])


def undone(b, i):
    """The text of a row of span corruption: each sentinel of the input replaced by its span."""
    target = b["targets"][i][b["weights"][i] > 0].tolist()
    source = b["inputs"][i][b["input_segments"][i] > 0].tolist()
    assert source[-1] == target[-1] == TOKENIZER.eos_id
    spans, sentinel = {}, None
    for token in target[:-1]:
        if token > MASK:
            sentinel = token
            spans[sentinel] = []
        else:
            spans[sentinel].append(token)
    return [t for token in source[:-1] for t in (spans[token] if token > MASK else [token])], spans


def test_span_corruption_loses_nothing(store):
    b = joined(list(eval_batches(store, config(SpanCorruption()), tokenizer=TOKENIZER)))
    text, sizes = [], []
    for i in range(len(b["inputs"])):
        if b["weights"][i].sum():
            part, spans = undone(b, i)
            assert list(spans) == sorted(spans)
            text += part
            sizes += [len(s) for s in spans.values()]
    assert text == store.read(0, len(store)).tolist()
    assert np.mean(sizes) == pytest.approx(3.0, abs=0.4)
    assert sum(sizes) / len(text) == pytest.approx(0.15, abs=0.02)
    np.testing.assert_array_equal(
        b["tokens"][:, 1:][b["weights"][:, 1:] > 0], b["targets"][:, :-1][b["weights"][:, 1:] > 0]
    )


def test_lengths_are_those_of_the_paper():
    # 568 tokens give 512 inputs and 114 targets, as with the published code's default.
    assert SpanCorruption().lengths(512) == (568, 114)


def test_every_cut_is_as_likely():
    counts = collections.Counter()
    for seed in range(3000):
        source, _ = corrupt(np.arange(6), 3, 2, np.asarray([100, 101]), np.random.default_rng(seed))
        counts[tuple(source)] += 1
    # 2 ways to split 3 kept tokens in two, 2 ways to split 3 removed tokens.
    assert len(counts) == 4 and min(counts.values()) > 650


def test_what_is_missing_is_named(store, tmp_path):
    with pytest.raises(FieldError, match=r"data.tokenizer.special_tokens='\[CLS\]'.*it has: none"):
        Masked().open(store, Bytes().build(list, tmp_path), config(Masked()))
    with pytest.raises(FieldError, match="<extra_id_0>"):
        SpanCorruption().open(store, ByteTokenizer(NAMES), config(SpanCorruption()))
    with pytest.raises(UserError, match="needs the tokenizer"):
        TrainBatches(store, config(Masked()))
    alone = build_store(tmp_path / "one", ["a b c d"], TOKENIZER, split="train", source_fingerprint="t")
    with pytest.raises(UserError, match="1 documents.*FullSentences"):
        Masked().open(alone, TOKENIZER, config(Masked()))
    with pytest.raises(FieldError, match="seq_len=4"):
        Masked().open(store, TOKENIZER, config(Masked(), seq_len=4))
    with pytest.raises(FieldError, match="seq_len=1"):
        SpanCorruption().lengths(1)


@pytest.mark.parametrize(
    "bad",
    [
        Masked(rate=0.0),
        Masked(mask_share=0.95),
        Masked(static_copies=-1),
        SentencePairs(next_rate=1.5),
        SpanCorruption(noise_density=1.0),
        SpanCorruption(mean_span_length=0.5),
    ],
)
def test_bad_fields_are_named(bad):
    with pytest.raises(FieldError):
        bad.check()
