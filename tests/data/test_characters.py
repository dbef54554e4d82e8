"""ELMo's examples: every word once in each direction, nothing across documents, and the right characters."""

import numpy as np
import pytest

from jaxnlp.data.pipeline import DataConfig, TrainBatches, eval_batches
from jaxnlp.data.text.characters import Characters
from jaxnlp.data.text.store import build_store
from jaxnlp.data.tokenizer import Bytes, ByteTokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn.character_cnn import BEGIN_SENTENCE, END_SENTENCE, NO_WORD, spell

TOKENIZER = ByteTokenizer()
TEXTS = ["abcdefg", "hi", "", "jklmnopqrstuvwxyz", "A"]
SEPARATOR = TOKENIZER.eos_id


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build_store(
        tmp_path_factory.mktemp("s") / "store", TEXTS, TOKENIZER, split="train", source_fingerprint="test"
    )


def config(**fields):
    defaults = {"tokenizer": Bytes(), "task": Characters(max_chars=6), "seq_len": 5, "batch_size": 3}
    return DataConfig(**{**defaults, "prefetch_threads": 0, **fields})


def rows(store, **fields):
    """All windows of the split, one after the other: (window, place, ...)."""
    batches = list(eval_batches(store, config(**fields), tokenizer=TOKENIZER))
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def read(characters):
    """The character at a position: a byte, "<", ">" or None."""
    if (characters == NO_WORD).all():
        return None
    return {BEGIN_SENTENCE: "<", END_SENTENCE: ">"}.get(int(characters[1])) or chr(characters[1] - 1)


@pytest.mark.parametrize("seq_len", [1, 4, 5, 64])
def test_windows_are_the_marked_documents_one_after_the_other(store, seq_len):
    b = rows(store, seq_len=seq_len)
    text = [read(place) for place in b["tokens"].reshape(-1, 6)]
    wanted = "".join(f"<{text}>" for text in TEXTS)
    assert text[: len(wanted)] == list(wanted) and set(text[len(wanted) :]) <= {None}
    assert ((b["segment_ids"].reshape(-1) != 0) == [place is not None for place in text]).all()


@pytest.mark.parametrize("seq_len", [1, 4, 5, 64])
def test_each_direction_predicts_every_word_once_and_a_separator_a_document(store, seq_len):
    b = rows(store, seq_len=seq_len)
    wanted = store.read(0, len(store)).tolist()
    predicted = lambda way: b[f"{way}_targets"][b[f"{way}_weights"] > 0].tolist()
    assert predicted("forward") == wanted[1:] and predicted("backward") == wanted[:-1]
    # Makes the mean over targets times targets per byte exact.
    assert b["forward_weights"].sum() == b["backward_weights"].sum() == len(store) - 1


def test_targets_are_the_words_beside_each_place_and_segments_are_documents(store):
    b = rows(store, seq_len=64)
    marked = "".join(f"<{text}>" for text in TEXTS)
    for t, here in enumerate(marked):
        name = lambda token: "|" if token == SEPARATOR else chr(token)
        assert b["forward_weights"][0, t] == (here != ">") and b["backward_weights"][0, t] == (here != "<")
        if here != ">":
            assert name(b["forward_targets"][0, t]) == marked[t + 1].replace(">", "|")
        if here != "<":
            assert name(b["backward_targets"][0, t]) == marked[t - 1].replace("<", "|")
        assert b["segment_ids"][0, t] == marked[: t + 1].count("<")
    across = rows(store, seq_len=64, attend_across_documents=True)
    np.testing.assert_array_equal(across["segment_ids"], b["segment_ids"] > 0)


def test_characters_are_those_of_the_words_text(tmp_path):
    class Words(ByteTokenizer):
        """A vocabulary of three words and a special token."""

        def token_bytes(self):
            return [*(word.encode() for word in ("ab", " naïve", "\n\n")), *[None] * 254]

    store = build_store(tmp_path / "store", ["\0\1\2", "\3"], TOKENIZER, split="train", source_fingerprint="t")
    batch = next(eval_batches(store, config(seq_len=9, task=Characters(max_chars=8)), tokenizer=Words()))
    begin, end = BEGIN_SENTENCE, END_SENTENCE
    wanted = spell([begin, "ab", " naïve", "\n\n", end, begin, b"", end], 8)  # a special token has no characters
    np.testing.assert_array_equal(batch["tokens"][0, :8], wanted)
    assert (batch["tokens"][0, 8:] == NO_WORD).all() and (batch["tokens"][1:] == NO_WORD).all()


def test_a_resumed_stream_and_a_process_share_read_the_same(store):
    stream = TrainBatches(store, config(), tokenizer=TOKENIZER)
    whole = [next(stream) for _ in range(5)]
    rest = TrainBatches(store, config(), 9, range(1, 3), tokenizer=TOKENIZER)
    for batch in whole[3:]:
        resumed = next(rest)
        for name in batch:
            np.testing.assert_array_equal(resumed[name], batch[name][1:3])


def test_shapes_are_those_of_the_batches(store):
    batch = next(TrainBatches(store, config(), tokenizer=TOKENIZER))
    shapes = config().task.shapes(config())
    assert {name: ((3, *shape), np.dtype(dtype)) for name, (shape, dtype) in shapes.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }


def test_what_cannot_work_is_named(store):
    with pytest.raises(FieldError, match="max_chars=2"):
        Characters(max_chars=2).check()
    with pytest.raises(UserError, match="needs the tokenizer"):
        TrainBatches(store, config())
