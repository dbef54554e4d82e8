"""Records from every file format; the store has one global order, which a resumed run continues."""

import collections
import gzip
import json

import numpy as np
import pytest
import zstandard

from jaxnlp.data import pipeline
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tokenizer import Bytes, ByteTokenizer
from jaxnlp.errors import UserError

SPECIALS = ("[CLS]", "[SEP]")
ROWS = [{"text": f"text {i}", "label": "xyz"[i % 3]} for i in range(60)]


def write(path, rows=ROWS):
    """Writes records in the format that the file name implies."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if ".csv" in path.name or ".tsv" in path.name:
        mark = "," if ".csv" in path.name else "\t"
        text = "".join(mark.join(row) + "\n" for row in [list(rows[0]), *(map(str, r.values()) for r in rows)])
    data = text.encode()
    data = gzip.compress(data) if path.suffix == ".gz" else data
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


def config(path, **fields):
    source = fields.pop("source", None) or Records(train=str(path), holdout=0.2)
    return pipeline.resolved(
        pipeline.DataConfig(
            **{
                "source": source,
                "tokenizer": Bytes(special_tokens=SPECIALS),
                "task": SequenceClassificationTask(),
                "seq_len": 12,
                "batch_size": 4,
                "prefetch_threads": 0,
                **fields,
            }
        )
    )


def opened(c, split="train"):
    tokenizer = pipeline.open_tokenizer(c)
    return pipeline.open_split(c, split, tokenizer), tokenizer


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.jsonl.zst", "x.csv", "x.csv.gz", "x.tsv", "x.parquet"]
)
def test_every_format_gives_the_same_records(tmp_path, name):
    source = Records(train=str(write(tmp_path / name)), holdout=0.2)
    by_split = {split: [r.fields for r in source.records(split)] for split in ("train", "validation", "test")}
    assert sorted(r["text"] for rows in by_split.values() for r in rows) == sorted(r["text"] for r in ROWS)
    assert all(len(rows) > 2 for rows in by_split.values())
    first = next(source.records("train"))
    assert first.where.startswith(str(tmp_path / name)) and first.fields == by_split["train"][0]
    assert next(source.documents("train")) == f"{first.fields['text']}\n{first.fields['label']}"


def test_records_that_share_a_group_stay_together(tmp_path):
    rows = [{"context": f"context {i // 4}", "label": i} for i in range(200)]
    source = Records(train=str(write(tmp_path / "x.jsonl", rows)), holdout=0.2, group="context")
    groups = [{r.fields["context"] for r in source.records(split)} for split in ("train", "validation", "test")]
    assert sum(map(len, groups)) == 50 == len(set.union(*groups))


def test_files_of_their_own_are_splits(tmp_path):
    write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl", ROWS[:5])
    source = Records(train=f"{tmp_path}/*.jsonl", validation=str(tmp_path / "b.jsonl"), holdout=0.2)
    assert len(list(source.records("validation"))) == 5
    assert len(list(source.records("train"))) + len(list(source.records("test"))) == 60


def test_the_order_is_one_sequence_that_any_number_of_processes_goes_on_with(tmp_path):
    c = config(write(tmp_path / "x.jsonl"))
    store, tokenizer = opened(c)
    read = lambda *args, **kw: pipeline.TrainBatches(store, c, *args, tokenizer=tokenizer, **kw)
    rows = lambda batch: [tuple(row[0]) for row in batch["tokens"].tolist()]
    whole = read()
    count = whole.examples_per_epoch
    assert count == len(store.records) == len(list(c.source.records("train")))
    first = [row for _ in range(count) for row in rows(next(whole))]  # four epochs, with full and partial batches
    assert whole.state["position"] == 4 * count
    epochs = [first[i * count : (i + 1) * count] for i in range(4)]
    assert all(collections.Counter(e) == collections.Counter(epochs[0]) for e in epochs) and epochs[0] != epochs[1]
    assert len(set(epochs[0])) == count
    for position in (4, 20, 4 * (count // 4)):
        parts = [read(position, range(k, k + 2)) for k in (0, 2)]
        for step in range(position // 4, position // 4 + 3):
            together = [row for part in parts for row in rows(next(part))]
            assert together == first[4 * step : 4 * step + 4]


def test_an_evaluation_reads_each_once_and_fills_up_the_last_batch(tmp_path):
    c = config(write(tmp_path / "x.jsonl"))
    store, tokenizer = opened(c, "validation")
    batches = list(pipeline.eval_batches(store, c, tokenizer=tokenizer))
    count = len(store.records)
    assert count % 4 and len(batches) == -(-count // 4)
    weights = np.concatenate([b["weights"] for b in batches])
    assert weights.sum() == count and not weights[count:].any()
    labels = np.concatenate([b["labels"] for b in batches])[:count]
    assert [c.task.classes[k] for k in labels] == [r.fields["label"] for r in store.records]


def test_classes_are_the_train_splits_in_order(tmp_path):
    assert config(write(tmp_path / "x.jsonl")).task.classes == ("x", "y", "z")
    numbers = [{"text": "t", "label": n} for n in (10, 9, 2, -1)] * 30
    rows = [{**row, "text": f"t{i}"} for i, row in enumerate(numbers)]
    assert config(write(tmp_path / "n.csv", rows)).task.classes == ("-1", "2", "9", "10")


def test_the_corpus_has_another_name_when_a_text_or_a_label_changes(tmp_path):
    names = set()
    for change in ({}, {"text": "another"}, {"label": "y"}):
        path = write(tmp_path / "x.jsonl", [*ROWS[:30], {**ROWS[30], **change}, *ROWS[31:]])
        c = config(path, source=Records(train=str(path), validation=str(write(tmp_path / "v.jsonl"))))
        names.add(pipeline.corpus_fingerprint(opened(c)[0], c))
    assert len(names) == 3


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("x.jsonl", '{"label": "a"}\n[1]\n', "x.jsonl:2: expected a JSON object, got list"),
        ("x.jsonl", '{"text": "a"\n', "x.jsonl:1: invalid JSON"),
        ("x.jsonl", '{"text": "\\ud800"}\n', "x.jsonl:1: contains an unpaired surrogate"),
        ("x.csv", "text,text\n1,2\n", "x.csv: the first line is not a header: text, text"),
        ("x.csv", "text,label\n1,2\n1\n", "x.csv:3: has 1 columns; the header has 2"),
        ("x.csv", 'text,label\n"1,2\n', "not a valid table row"),
        (
            "x.txt",
            "text\n",
            "x.txt: not a file of records; expected an extension of .jsonl, .json, .csv, .tsv, .parquet",
        ),
        ("x.parquet", "text\n", "x.parquet: not a Parquet file"),
        ("x.jsonl", '{"text": "a", "label": "x"}\n' * 9, "the train split has only the label x; expected 2 or more"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as error:
        config(path, source=Records(train=str(path), validation=str(write(tmp_path / "v.jsonl"))))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_label_that_train_lacks_is_named(tmp_path):
    rows = [*ROWS[:2], {"text": "a", "label": "w"}]
    source = Records(train=str(write(tmp_path / "t.jsonl")), validation=str(write(tmp_path / "v.jsonl", rows)))
    with pytest.raises(
        UserError, match=r"v.jsonl:3 has the label 'w', which is not one of the classes; expected one of x, y, z"
    ):
        opened(config(None, source=source), "validation")


def test_text_and_records_are_not_taken_for_each_other(tmp_path):
    from jaxnlp.data.text.sources import Files

    (tmp_path / "x.txt").write_text("some text\n")
    source = Files(train=str(tmp_path / "x.txt"))
    with pytest.raises(
        UserError, match=r"data.source='Files': contains text; SequenceClassificationTask\(\) needs records"
    ):
        opened(config(None, source=source, task=SequenceClassificationTask(classes=("x", "y"))))
    store = pipeline.open_split(
        pipeline.DataConfig(source=source, cache_dir=str(tmp_path / "cache")), "train", ByteTokenizer()
    )
    with pytest.raises(UserError, match="needs records"):
        SequenceClassificationTask().open(store, ByteTokenizer(), pipeline.DataConfig())
