"""The standard library's syntax trees, read and cached for later processes."""

import ast

import pytest

from jaxnlp.data.corpora import stdlib_ast as reading
from jaxnlp.data.text import sources


@pytest.fixture
def some(monkeypatch, tmp_path):
    """A library of four files, not yet cached, and its cache folder."""
    names = {"textwrap.py", "bisect.py", "shlex.py", "colorsys.py"}
    files = [path for path in sources.PythonStdlib().files() if path.name in names]
    monkeypatch.setattr(sources.PythonStdlib, "files", lambda self: files)
    monkeypatch.setenv("JAXNLP_CACHE", str(tmp_path))
    return reading.library.__wrapped__, tmp_path / "library"


def test_what_is_kept_is_what_was_read(some, monkeypatch):
    library, folder = some
    parsed = library()
    assert len(parsed) == 4 and all(file.definitions for file in parsed)
    (cached,) = folder.iterdir()
    monkeypatch.setattr(reading, "_read", lambda files: pytest.fail("read again"))
    assert library() == parsed
    assert [*folder.iterdir()] == [cached]


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: '[{"name": "x"}]'])
def test_a_damaged_file_is_read_and_kept_anew(some, damage):
    library, folder = some
    files = library()
    (cached,) = folder.iterdir()
    whole = cached.read_text()
    cached.write_text(damage(whole))
    assert library() == files and cached.read_text() == whole


def test_a_folder_that_cannot_be_written_costs_only_time(some, monkeypatch):
    library, folder = some
    folder.parent.joinpath("file").write_text("")
    monkeypatch.setenv("JAXNLP_CACHE", str(folder.parent / "file"))
    assert len(library()) == 4


def test_a_function_and_its_signature():
    node = ast.parse("def f(self, a, /, b: int = 1, *c, d, e='x', **g): pass").body[0]
    text, parameters = reading._signature(node)
    assert text == "def f(self, a, b=1, *c, d, e='x', **g)"
    assert [(p.name, p.default and p.default[0]) for p in parameters] == [
        *(("a", None), ("b", "1"), ("c", None), ("d", None), ("e", "'x'"), ("g", None)),
    ]
    assert all(text[p.default[1] :].startswith(p.default[0]) for p in parameters if p.default)
    assert reading._signature(ast.parse("def f(*, a): pass").body[0])[0] == "def f(*, a)"
