"""Text pairs as encoder-decoder examples, and the built-in data sets."""

import ast
import json

import numpy as np
import pytest

from jaxnlp.data.corpora.stdlib_tasks import StdlibCalls
from jaxnlp.data.pipeline import DataConfig, TrainBatches, eval_batches, open_split
from jaxnlp.data.records import Record, Records
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.data.text.span_corruption import SpanCorruption
from jaxnlp.data.tokenizer import Bytes, ByteTokenizer
from jaxnlp.errors import FieldError

SEP, PAD = 256, 257
PAIRS = [("ab", "xyz"), ("c", "d"), ("efgh", "q")]


def config_of(folder, **fields):
    lines = [json.dumps({"source": source, "target": target}) for source, target in PAIRS]
    (folder / "train.jsonl").write_text("\n".join(lines))
    (folder / "validation.jsonl").write_text(lines[0])
    source = Records(train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl"))
    examples = TextPairs(**fields)
    tokenizer = Bytes(special_tokens=("<pad>",))
    return DataConfig(source=source, tokenizer=tokenizer, task=examples, seq_len=6, batch_size=4, shuffle=False)


def batch_of(folder, **fields):
    config, tokenizer = config_of(folder, **fields), ByteTokenizer(["<pad>"])
    return next(eval_batches(open_split(config, "train", tokenizer), config, tokenizer=tokenizer))


def test_arrays_written_by_hand(tmp_path):
    batch = batch_of(tmp_path, target_len=4, decoder_start_token="<pad>")
    a, x = ord("a"), ord("x")
    np.testing.assert_array_equal(batch["inputs"][0], [a, a + 1, SEP, SEP, SEP, SEP])
    np.testing.assert_array_equal(batch["input_segments"][0], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(batch["targets"][0], [x, x + 1, x + 2, SEP])
    np.testing.assert_array_equal(batch["tokens"][0], [PAD, x, x + 1, x + 2])
    np.testing.assert_array_equal(batch["segment_ids"][1], [1, 1, 0, 0])
    np.testing.assert_array_equal(batch["weights"].sum(1), [4, 2, 2, 0])  # the fourth row is padding
    assert (batch["input_segments"][3] == 0).all()
    plain = batch_of(tmp_path)
    assert plain["targets"].shape == (4, 6) and (plain["tokens"][:, 0] == SEP).all()


def test_shapes_are_those_of_the_batch(tmp_path):
    config = config_of(tmp_path, target_len=5)
    batch = batch_of(tmp_path, target_len=5)
    shapes = config.task.shapes(config)
    assert {name: (x.shape[1:], x.dtype) for name, x in batch.items()} == {k: (s, d) for k, (s, d) in shapes.items()}
    assert config.task.predicted_fraction(config) == 5 / 6


def test_training_reads_each_pair_once_an_epoch(tmp_path):
    config, tokenizer = config_of(tmp_path), ByteTokenizer(["<pad>"])
    config.batch_size, config.shuffle = 3, True
    batches = TrainBatches(open_split(config, "train", tokenizer), config, tokenizer=tokenizer)
    for _ in range(2):
        assert sorted(next(batches)["inputs"][:, 0].tolist()) == sorted(map(ord, "ace"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_len": 3}, r"data\.task\.target_len=3: .*train\.jsonl:1 has 4 tokens"),
        ({"source": "src"}, r"data\.task\.source='src'.*no such field"),
        ({"target_len": 1}, "target_len=1"),
    ],
)
def test_bad_pairs_are_named(fields, message, tmp_path):
    with pytest.raises(FieldError, match=message):
        TextPairs(**fields).check()
        batch_of(tmp_path, **fields)


def test_longer_texts_are_cut_where_the_config_says_so_and_told(tmp_path):
    messages = []
    record = Record("x:1", {"source": "abcdefgh", "target": "ijkl"})
    task = TextPairs(truncate=True, target_len=3)
    source, target = task.encode([record], ByteTokenizer(), 6, messages.append)[0].sequences
    assert bytes(source.tokens[:-1].tolist()) == b"abcde" and bytes(target.tokens[:-1].tolist()) == b"ij"
    assert source.tokens[-1] == target.tokens[-1] == SEP
    assert [message.split(" truncated")[0] for message in messages] == ["note: 1 source", "note: 1 target"]


def test_span_corruption_begins_with_the_token_it_is_told(tmp_path):
    text = "the quick brown fox jumps over the lazy dog " * 20
    (tmp_path / "t.txt").write_text(text)
    from jaxnlp.data.text.sentinels import sentinels
    from jaxnlp.data.text.sources import Files

    names = ("<pad>", *sentinels(8))
    for start, wanted in ((None, SEP), ("<pad>", PAD)):
        config = DataConfig(
            source=Files(train=str(tmp_path / "t.txt"), validation=str(tmp_path / "t.txt")),
            tokenizer=Bytes(special_tokens=names),
            task=SpanCorruption(decoder_start_token=start),
            seq_len=32,
            batch_size=2,
            cache_dir=str(tmp_path),
        )
        tokenizer = ByteTokenizer(names)
        batch = next(eval_batches(open_split(config, "validation", tokenizer), config, tokenizer=tokenizer))
        assert (batch["tokens"][:, 0] == wanted).all()
        real = batch["weights"][:, 1:] > 0
        np.testing.assert_array_equal(batch["tokens"][:, 1:][real], batch["targets"][:, :-1][real])


def test_the_embedded_calls_pass_on_every_parameter_and_share_no_signature_between_splits():
    splits = {split: list(StdlibCalls().records(split)) for split in ("train", "validation", "test")}
    assert len(splits["train"]) > 3000 and all(len(records) > 200 for records in splits.values())
    sources = [{r.fields["source"] for r in records} for records in splits.values()]
    assert not sources[0] & sources[1] and not sources[0] & sources[2] and not sources[1] & sources[2]
    for record in splits["validation"]:
        a = ast.parse(record.fields["source"] + ": pass").body[0].args
        call = ast.parse(record.fields["target"], mode="eval").body
        plain = [x.arg for x in (*a.posonlyargs, *a.args) if x.arg not in ("self", "cls")]
        passed = [x for x in call.args if isinstance(x, ast.Name)]
        assert [x.id for x in passed] == plain
        keywords = [x.arg for x in a.kwonlyargs] + ([None] if a.kwarg else [])
        assert [k.arg for k in call.keywords] == keywords
        assert any(isinstance(x, ast.Starred) for x in call.args) == (a.vararg is not None)
