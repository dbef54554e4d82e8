"""`~` and `~user` are expanded as a shell does, and a home that is missing is an error that says so."""

import ast
import os
import pathlib
import pwd
import re
import tempfile

import pytest

from jaxnlp import paths
from jaxnlp.errors import UserError
from jaxnlp.paths import cache_folder, local
from tests.entry import ROOT


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    user = pwd.getpwuid(os.getuid())
    assert local("~/runs/x") == tmp_path / "runs/x" and local("~") == tmp_path
    assert local(f"~{user.pw_name}/x") == pathlib.Path(user.pw_dir) / "x"  # the passwd entry's, whatever $HOME is
    for plain in ("runs/x", "/runs/x", "runs/~/x", "a~", ""):
        assert local(plain) == pathlib.Path(plain)
    assert local(local("./~x")) == pathlib.Path.cwd() / "~x"
    assert local(local("~/x")) == tmp_path / "x"
    monkeypatch.setenv("JAXNLP_CACHE", "~/cache")
    assert cache_folder() == tmp_path / "cache" and cache_folder("~/other") == tmp_path / "other"
    monkeypatch.delenv("JAXNLP_CACHE")
    assert cache_folder() == tmp_path / ".cache/jaxnlp"


def test_a_missing_home_is_an_error_unless_a_file_has_the_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"~nobody-here/x: no such user, or write ./~nobody-here/x"):
        local("~nobody-here/x")
    (tmp_path / "~draft.txt").write_text("")
    assert local("~draft.txt") == local(local("~draft.txt")) == tmp_path / "~draft.txt"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    with pytest.raises(UserError, match="~/x: this user has no home folder; set .HOME"):
        local("~/x")


def test_a_user_without_a_home_folder_has_caches_among_the_temporary_files(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("JAXNLP_CACHE", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths._default_cache.cache_clear()
    own = tmp_path / f"jaxnlp-{os.getuid()}"
    assert paths.cache_folder() == paths.cache_folder() == own and own.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err.count("note: this user has no home folder; caches are in") == 1
    assert paths.cache_folder(str(tmp_path / "chosen")) == tmp_path / "chosen"
    own.chmod(0o777)  # another user may have put files there
    paths._default_cache.cache_clear()
    assert paths.cache_folder().parent == tmp_path and paths.cache_folder() != own
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".cache").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert paths.cache_folder().parent == tmp_path and ".cache/jaxnlp cannot be written" in capsys.readouterr().err
    (tmp_path / "home" / ".cache").unlink()
    paths._default_cache.cache_clear()
    assert paths.cache_folder() == tmp_path / "home" / ".cache" / "jaxnlp"
    paths._default_cache.cache_clear()


def paths_made(source):
    """The calls of `pathlib.Path` with a value that a user may have given, as "line: argument"."""
    nodes = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and n.args)
    calls = ((n.lineno, ast.unparse(n.args[0])) for n in nodes if ast.unparse(n.func) == "pathlib.Path")
    return [f"{line}: {text}" for line, text in calls if not re.search(OWN, text)]


# Constants, paths of this program or of a library, the name of a config alone, and what `expanded` or glob returned.
OWN = r"__file__|^[\"']|^sys\.|^sysconfig|^spec|^tempfile|^snapshot_download|^f$|^p$|^specs"
EXPANDED = {"jaxnlp/cli.py", "jaxnlp/interop/huggingface.py", "jaxnlp/training/open_huggingface.py"}
EXPANDED |= {"jaxnlp/training/init/pretrained.py", "jaxnlp/paths.py"}


def test_every_path_passes_the_place_that_expands_it():
    rooms = (path for room in ("jaxnlp", "experiments") for path in sorted((ROOT / room).rglob("*.py")))
    places = {path.relative_to(ROOT).as_posix(): path.read_text() for path in rooms}
    for name, source in places.items():
        assert name in EXPANDED or not paths_made(source), f"{name}: use jaxnlp.paths.local: {paths_made(source)}"
        assert "expanduser" not in source or name == "jaxnlp/paths.py", name
    for name in EXPANDED - {"jaxnlp/paths.py"}:
        assert "expanded(" in places[name], name
    assert paths_made("a\nb = pathlib.Path(x).parent, pathlib.Path('x'), pathlib.Path(__file__)") == ["2: x"]
