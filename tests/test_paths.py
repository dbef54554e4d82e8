"""`~` and `~user` are expanded as a shell does, and a home that is missing is an error that says so."""

import os
import pathlib
import pwd

import pytest

from jaxnlp.errors import UserError
from jaxnlp.paths import cache_folder, local


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
    assert local("~draft.txt") == pathlib.Path("~draft.txt")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    with pytest.raises(UserError, match="~/x: this user has no home folder; set .HOME"):
        local("~/x")
