"""A data folder is not everything in it: what is left out, what is named, and what the run says of it."""

import os

import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest

from jaxnlp.data.records import Records
from jaxnlp.data.text.file_lists import expand
from jaxnlp.data.text.sources import Files
from jaxnlp.errors import UserError

FIELD = "data.source.train"


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")


def names(folder, pattern=""):
    return [path.relative_to(folder).as_posix() for path in expand(FIELD, str(folder / pattern))]


DATA = ["a.txt", "b.jsonl", "col=1/_year=2020/part-0.txt", "deep/er/c.txt", "readme_texts.jsonl", "x_SUCCESS"]
OTHER = {
    "jupyter": [".ipynb_checkpoints/a-checkpoint.txt", "deep/.ipynb_checkpoints/c.txt", "a.txt~", "a.txt.bak"],
    "hub": ["README.md", ".gitattributes", ".cache/huggingface/x.metadata", "LICENSE", "deep/dataset_infos.json"],
    "spark": ["_SUCCESS", "._SUCCESS.crc", "_temporary/0/part-0.txt", "_committed_123", "deep/.part-0.txt.crc"],
    "system": [".DS_Store", "__MACOSX/a.txt", "Thumbs.db", "deep/.nfs000", ".git/logs/HEAD", "__pycache__/x.pyc"],
    "readmes": [
        "README_de.md",
        "Readme-fr.TXT",
        "README.zh-CN",
        "deep/ReadMe.zh-CN.md",
        "README.linux",
        "readme2.html",
    ],
    "checksums": ["SHA256SUMS", "sha512sums.txt", "MD5SUMS", "deep/Checksums.TXT", "SHASUMS256.txt.asc", "md5sum.txt"],
    "hadoop": ["_metadata", "_common_metadata", "_started_12", "_delta_log/00.json", "_part.txt.gz", "_x.snappy.orc"],
    "download": ["c.txt.part", "c.txt.sha256", "c.txt.lock", "deep/c.parquet.incomplete"],
}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("pattern", ["", "**"])
def test_what_is_not_data_is_left_out_and_the_run_says_so(tmp_path, capsys, kind, pattern):
    make(tmp_path, *DATA, *OTHER[kind])
    assert names(tmp_path, pattern) == DATA
    assert names(tmp_path, pattern) == DATA
    note = capsys.readouterr().err
    assert note.startswith(f"note: {FIELD}={tmp_path}") and note.count("\n") == 1  # once
    for name in OTHER[kind]:
        assert os.path.relpath(name).split("/")[0] in note or "more" in note, note


SOURCE = [
    "__init__.py",
    "_private.py",
    "a/__main__.py",
    "a/_util.c",
    "a/_x.py.gz",
    "checksums.py",
    "readme_writer.py",
]


@pytest.mark.parametrize("pattern", ["", "**"])
def test_source_files_are_read(tmp_path, capsys, pattern):
    """Hadoop's rule for names that begin with `_` is for what Hadoop writes."""
    make(tmp_path, *SOURCE, "_out/a.py", "__pycache__/a.pyc", "_speed.so", "_tmp.17")
    assert names(tmp_path, pattern) == SOURCE
    assert names(tmp_path, "*.py") == ["__init__.py", "_private.py", "checksums.py", "readme_writer.py"]
    assert names(tmp_path, "_*/*") == ["__pycache__/a.pyc", "_out/a.py"]


def test_pyarrow_reads_the_same_files_of_a_folder(tmp_path):
    table = pyarrow.table({"text": ["a"]})
    for name in ("part-0.parquet", "_old.parquet", ".hidden.parquet", "_delta_log/x.parquet", "d/part-1.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(table, tmp_path / name)
    expected = pyarrow.dataset.dataset(tmp_path, format="parquet").files
    assert [str(path) for path in expand(FIELD, str(tmp_path))] == sorted(expected)


def test_named_files_are_read(tmp_path, capsys):
    make(tmp_path, "a.txt", "_b.txt", ".c.txt", ".cache/d.txt", "README.md", "SHA1SUMS", "b.md", "a.txt.bak")
    for pattern, expected in {
        "_b.txt": ["_b.txt"],
        "README.md": ["README.md"],
        "README*": ["README.md"],
        "SHA*SUMS": ["SHA1SUMS"],
        "_*": ["_b.txt"],
        ".*": [".c.txt"],
        ".cache": [".cache/d.txt"],
        ".cache/*": [".cache/d.txt"],
        "*.bak": ["a.txt.bak"],
    }.items():
        assert names(tmp_path, pattern) == expected
    assert capsys.readouterr().err == ""
    assert names(tmp_path, "*.md") == ["b.md"] and names(tmp_path, "a*") == ["a.txt"]
    assert "left out README.md (hidden" in capsys.readouterr().err
    (tmp_path / "b.md").unlink()
    with pytest.raises(UserError, match=r"matches only README.md, which are left out unless named; name a file"):
        names(tmp_path, "*.md")


def test_links_are_followed_once_and_broken_ones_are_errors(tmp_path):
    make(tmp_path, "real/a.txt", "data/b.txt")
    (tmp_path / "data/linked").symlink_to(tmp_path / "real")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    assert names(tmp_path, "data") == ["data/b.txt", "data/linked/a.txt"]
    (tmp_path / "data/c.txt").symlink_to(tmp_path / "missing")
    with pytest.raises(UserError, match="c.txt'?: is a link to a missing file"):
        names(tmp_path, "data")


def test_a_home_folder_is_expanded_in_every_pattern(tmp_path, monkeypatch):
    make(tmp_path, "a.txt", "d/b.txt")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand(FIELD, "~/a.txt, ~/d, ~/*.txt") == [tmp_path / "a.txt", tmp_path / "d/b.txt", tmp_path / "a.txt"]


@pytest.mark.parametrize("name", ["X.JSONL", "X.Json", "x.CSV", "X.PARQUET", "x.JSONL.GZ", "x.csv.ZST"])
def test_suffixes_are_read_in_any_case(tmp_path, name):
    from tests.data.test_records import ROWS, write

    plain = write(tmp_path / name.lower(), ROWS)
    plain.rename(tmp_path / "renamed").rename(tmp_path / name)
    source = Records(train=str(tmp_path), test=str(tmp_path / name))
    assert [row.fields["text"] for row in source.records("test")] == [row["text"] for row in ROWS]
    if "csv" not in name.lower():
        source = Files(train=str(tmp_path), test=str(tmp_path / name))
        assert list(source.documents("test")) == [row["text"] for row in ROWS]
