"""Tasks generated from the standard library are deterministic and balanced, and their splits do not overlap."""

import collections
import itertools

import pytest

from jaxnlp.data.corpora import stdlib_tasks as tasks
from jaxnlp.data.text.sources import SPLITS
from jaxnlp.errors import UserError

ALL = (
    tasks.StdlibDocstrings,
    tasks.StdlibEntailment,
    tasks.StdlibSimilarity,
    tasks.StdlibChoice,
    tasks.StdlibTags,
    tasks.StdlibSpans,
)


def splits(source):
    return {split: list(source().records(split)) for split in SPLITS}


def file_of(record):
    return record.where.partition(":")[0].partition(", statement")[0]


@pytest.mark.parametrize("source", ALL)
def test_files_are_in_one_split_each_and_their_shares_are_right(source):
    by_split = splits(source)
    files = {split: {file_of(r) for r in records} for split, records in by_split.items()}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not files[a] & files[b]
    sizes = {split: len(records) for split, records in by_split.items()}
    total = sum(sizes.values())
    assert total > 1500 and all(0.05 < sizes[split] / total < 0.2 for split in ("validation", "test"))
    assert by_split == splits(source) and source().fingerprint("train") != source().fingerprint("test")
    assert max(collections.Counter(file_of(r) for r in by_split["train"]).values()) <= tasks.OF_FILE


@pytest.mark.parametrize("source", ALL)
def test_no_record_is_in_two_splits(source):
    keys = {"text", "hypothesis", "words", "question", "options", "first"}
    seen = collections.defaultdict(set)
    for split, records in splits(source).items():
        for record in records:
            seen[str([v for k, v in record.fields.items() if k in keys or k == "context"])].add(split)
    assert all(len(where) == 1 for where in seen.values())


def test_a_docstring_of_another_file_is_of_another_file_of_the_same_split():
    docs = {d.doc: file.name for file in tasks.library() for d in file.definitions if d.doc}
    for records in splits(tasks.StdlibEntailment).values():
        files = {file_of(r) for r in records}
        for record in records:
            where = docs[record.fields["hypothesis"]]
            assert where in files and (where == file_of(record)) == (record.fields["label"] == "own")
    for record in tasks.StdlibChoice().records("validation"):
        own = [docs[option] == file_of(record) for option in record.fields["options"]]
        assert own.index(True) == record.fields["label"] and sum(own) == 1
    for record in tasks.StdlibSimilarity().records("validation"):
        same = docs[record.fields["first"]] == docs[record.fields["second"]]
        assert same == (record.fields["label"] == "same")


def test_topics_are_in_every_split_and_none_is_a_quarter_of_it():
    for records in splits(tasks.StdlibDocstrings).values():
        counts = collections.Counter(r.fields["label"] for r in records)
        assert set(counts) == set(tasks.TOPICS) and max(counts.values()) < 0.25 * len(records)
        assert min(counts.values()) > 0.02 * len(records)
    names = [name for topic in tasks.TOPICS.values() for name in topic.split()]
    assert len(names) == len(set(names))


def test_a_library_that_lacks_a_topic_is_told(monkeypatch):
    whole = tasks.library()
    some = [file for file in whole if not file.name.startswith(("tkinter", "idlelib", "turtle", "curses"))]
    monkeypatch.setattr(tasks, "library", lambda: tuple(some))
    with pytest.raises(UserError, match="topic 'windows' has .* too few"):
        list(tasks.StdlibDocstrings().records("train"))


def test_labels_are_balanced():
    for source, count in ((tasks.StdlibEntailment, 2), (tasks.StdlibSimilarity, 2), (tasks.StdlibChoice, 4)):
        labels = collections.Counter(r.fields["label"] for r in source().records("train"))
        assert len(labels) == count
        assert max(labels.values()) < 1.15 * sum(labels.values()) / count
    answered = [bool(r.fields["answers"]["text"]) for r in tasks.StdlibSpans().records("train")]
    assert 0.3 < sum(answered) / len(answered) < 0.7
    tags = collections.Counter(t for r in tasks.StdlibTags().records("train") for t in r.fields["tags"])
    assert set(tags) == set(tasks.TAGS) and min(tags.values()) > 0.01 * sum(tags.values())


def test_answers_stand_where_they_are_said_to():
    for record in tasks.StdlibSpans().records("train"):
        answers, context = record.fields["answers"], record.fields["context"]
        name = record.fields["question"].removeprefix("default of ")
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert context[start : start + len(text)] == text and context[:start].endswith(f"{name}=")
        if not answers["text"]:
            assert not any(f"{mark}{name}=" in context for mark in (" ", "(", "*"))


def test_a_line_of_source_is_tagged():
    assert tasks._tagged("return x + 'a' if y else 1.5") == [
        *(("return", "keyword"), ("x", "name"), ("+", "operator"), ("'a'", "string"), ("if", "keyword")),
        *(("y", "name"), ("else", "keyword"), ("1.5", "number")),
    ]
    assert tasks._tagged("x = 1  # why") == [] and tasks._tagged("f(") == []
