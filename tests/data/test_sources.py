"""Sources: every format reads the same documents, splits do not leak, and errors name the fault of a bad file."""

import gzip
import json
import pathlib
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jaxnlp.data.text import file_lists, sources, text_files
from jaxnlp.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = [f"document {i}\nwith a second line, naïve 中文" for i in range(40)]


def write(folder, kind: str):
    """The documents as one file of the given kind; returns the source that reads them."""
    lines = "".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(DOCUMENTS))
    path = folder / f"corpus.{kind}"
    if kind == "jsonl":
        path.write_text(lines)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "jsonl.zst":
        path.write_bytes(zstandard.compress(lines.encode()))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"body": DOCUMENTS, "id": range(40)}), path)
    elif kind == "txt":
        path.write_text("\n\n".join(DOCUMENTS) + "\n")
        return sources.Files(train=str(path), document="paragraph", holdout=0.2)
    return sources.Files(train=str(path), field="body", holdout=0.2)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt"])
def test_every_format_reads_every_document_into_one_split(tmp_path, kind):
    source = write(tmp_path, kind)
    splits = {split: [text.strip() for text in source.documents(split)] for split in sources.SPLITS}
    assert sorted(text for texts in splits.values() for text in texts) == sorted(DOCUMENTS)
    assert all(splits.values())
    assert {s: [t.strip() for t in source.documents(s)] for s in sources.SPLITS} == splits


def test_equal_documents_stay_in_one_split(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(["same line", "another", "third", "fourth", "fifth"] * 20))
    source = sources.Files(train=str(tmp_path / "a.txt"), document="line", holdout=0.3)
    seen = {}
    for split in sources.SPLITS:
        try:
            seen[split] = set(source.documents(split))
        except UserError:
            seen[split] = set()
    assert not (seen["train"] & seen["validation"] or seen["train"] & seen["test"])


def test_given_validation_files_leave_train_whole_but_for_test(tmp_path):
    source = write(tmp_path, "jsonl")
    (tmp_path / "valid.jsonl").write_text(json.dumps({"body": "held out"}) + "\n")
    source.validation = str(tmp_path / "valid.jsonl")
    train, test = (list(source.documents(s)) for s in ("train", "test"))
    assert list(source.documents("validation")) == ["held out"]
    assert sorted(train + test) == sorted(DOCUMENTS) and not set(train) & set(test)


def test_folders_and_globs(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        (tmp_path / name).write_text(f"in {name}")
    read = lambda train: list(
        sources.Files(train=train, validation=f"{tmp_path}/v.txt", test=f"{tmp_path}/*/t.txt").documents("train")
    )
    for name in ("v.txt", "deep/t.txt"):
        (tmp_path / name).write_text(f"in {name}")
    # Files assigned to another split are excluded from train.
    assert read(str(tmp_path)) == ["in a.txt", "in b.txt", "in deep/c.txt"]
    assert read(f"{tmp_path}/b.txt, {tmp_path}/a.*") == ["in b.txt", "in a.txt"]
    assert read(f"{tmp_path}/**/c.txt") == ["in deep/c.txt"]
    with pytest.raises(UserError, match="all these files are also listed for validation or test"):
        read(f"{tmp_path}/v.txt")


def test_zstandard_frames_one_after_another_and_byte_order_marks(tmp_path):
    text = "".join(f"line {i} {i * i}\n" for i in range(20_000))
    frames = [zstandard.compress(part.encode()) for part in (text[:70_000], text[70_000:])]
    (tmp_path / "a.txt.zst").write_bytes(b"".join(frames))
    assert list(text_files.read_file(tmp_path / "a.txt.zst", "text", "file")) == [text]
    for cut in (10, len(frames[0]) - 1, len(frames[0]) + 100):
        (tmp_path / "a.txt.zst").write_bytes(b"".join(frames)[:cut])
        with pytest.raises(UserError, match="ends in the middle of a zstandard frame"):
            list(text_files.read_file(tmp_path / "a.txt.zst", "text", "file"))
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "marked"}\n')
    assert list(text_files.read_file(tmp_path / "b.jsonl", "text", "file")) == ["marked"]


def test_a_damaged_parquet_page(tmp_path):
    source = write(tmp_path, "parquet")
    path = pathlib.Path(source.train)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    with pytest.raises(UserError, match="(damaged|not a Parquet file)"):
        list(source.documents("train"))


@pytest.mark.parametrize("document", ["line", "paragraph"])
def test_text_in_another_encoding_is_refused_however_it_is_cut(tmp_path, document):
    (tmp_path / "a.txt").write_bytes("two lines\n\nof text\n".encode("utf-16-le"))
    with pytest.raises(UserError, match="NUL byte"):
        list(text_files.read_file(tmp_path / "a.txt", "text", document))


def test_a_path_behind_a_locked_folder(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "is_dir", refuse)
    with pytest.raises(UserError, match="check its permissions and those of its folder"):
        file_lists.expand("data.source.train", str(tmp_path / "a.txt"))


def test_the_fingerprint_follows_the_files(tmp_path):
    source = write(tmp_path, "jsonl")
    first = source.fingerprint("train")
    assert source.fingerprint("train") == first != source.fingerprint("validation")
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"body": "one more"}) + "\n")
    assert source.fingerprint("train") != first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none/*.txt", None, "data.source.train=.*none/.*: no such file, and no file matches"),
        ("empty.txt", b"", "empty.txt'?: the file is empty"),
        ("binary.txt", b"\x89PNG\xff\xfe\x00", "binary.txt: not UTF-8 text .byte 0x89.; expected a text file"),
        ("nul.txt", b"text\x00text", "nul.txt: contains a NUL byte"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl:2: invalid JSON"),
        (
            "field.jsonl",
            b'{"body": "a"}\n',
            r"data.source.field='text': .*field.jsonl:1 has no such field \(it has: body\)",
        ),
        ("half.jsonl", b'{"text": "\\ud83d"}\n', "half.jsonl:1: contains an unpaired surrogate"),
        ("number.jsonl", b'{"text": 5}\n', "number.jsonl:1 holds int, expected text"),
        ("list.jsonl", b"[1]\n", "list.jsonl:1 has no such field .it has: list."),
        ("cut.txt.gz", gzip.compress(bytes(range(33, 120)) * 9, mtime=0)[:60], "cut.txt.gz: cannot be read"),
        ("no.txt.gz", b"not gzip at all", "no.txt.gz: cannot be read"),
        ("no.jsonl.zst", b"not zstd at all", "no.jsonl.zst: cannot be read"),
        ("no.parquet", b"not parquet", "no.parquet: not a Parquet file"),
    ],
    ids=lambda x: x if isinstance(x, str) and " " not in x else "",
)
def test_bad_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    source = sources.Files(train=str(tmp_path / name))
    with pytest.raises(UserError, match=message):
        list(source.documents("train"))


def test_a_parquet_column_that_is_not_there(tmp_path):
    source = write(tmp_path, "parquet")
    source.field = "text"
    with pytest.raises(UserError, match="data.source.field='text': .*has the columns body, id"):
        list(source.documents("train"))


def test_one_document_cannot_fill_three_splits(tmp_path):
    (tmp_path / "a.txt").write_text("one document, one file")
    source = sources.Files(train=str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match="split is empty.*data.source.document='paragraph'"):
        for split in sources.SPLITS:
            list(source.documents(split))


def test_embedded_is_real_text_in_three_splits_that_do_not_overlap():
    splits = {split: set(sources.PythonStdlib().documents(split)) for split in sources.SPLITS}
    assert sum(map(len, splits["train"])) > 2_000_000
    assert all(sum(map(len, texts)) > 50_000 for texts in splits.values())
    assert not splits["train"] & splits["validation"] and not splits["train"] & splits["test"]
    assert any("def loads" in text for texts in splits.values() for text in texts)
    assert list(sources.PythonStdlib().documents("test")) == list(sources.PythonStdlib().documents("test"))


def test_embedded_docstrings_are_prose_without_code():
    text = next(sources.PythonStdlib(part="docstrings").documents("validation"))
    assert "import " not in text.splitlines()[0]
    assert sources.docstrings('"""A."""\ndef f():\n    """B."""\n    return 1\n') == "A.\n\nB."


def test_tfds_reads_array_records_without_tensorflow(tmp_path):
    """A prepared data set, read in a process of its own: no TensorFlow may be imported on the way."""
    program = f"""
import sys
from tests.data import tiny_tfds
import tensorflow_datasets as tfds
from jaxnlp.data.text import sources
from jaxnlp.errors import UserError
source = sources.TFDS(name="tiny_tfds", data_dir={str(tmp_path)!r}, validation="train[:2]", field="body")
try:
    list(source.documents("train"))
except UserError as e:
    print("unprepared:", e)
tiny_tfds.TinyTfds(data_dir={str(tmp_path)!r}, file_format="array_record").download_and_prepare()
print("train:", list(source.documents("train")))
print("validation:", list(source.documents("validation")))
for field, value in (("field", "text"), ("test", "nope"), ("name", "no_such_set")):
    fields = {{"name": "tiny_tfds", "data_dir": {str(tmp_path)!r}, field: value}}
    try:
        list(sources.TFDS(**fields).documents("test" if field == "test" else "train"))
    except UserError as e:
        print(field, "error:", e)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (
        "unprepared: data.source.name='tiny_tfds': not prepared in" in done.stdout
        and "download_and_prepare()" in done.stdout
    )
    train = next(line for line in done.stdout.splitlines() if line.startswith("train:"))
    assert all(f"record {i}" in train for i in range(5))
    assert "field error: data.source.field='text': tiny_tfds has the features" in done.stdout
    assert "test error: data.source.test='nope': cannot be read" in done.stdout
    assert "name error: data.source.name='no_such_set': TFDS cannot load it" in done.stdout
