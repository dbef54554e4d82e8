"""Temporary folders of killed processes are removed and those of running ones kept; files are complete or absent."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jaxnlp import scratch
from jaxnlp.errors import UserError
from tests.entry import ROOT

HOLDER = """
import pathlib, sys, time
from jaxnlp.scratch import scratch
with scratch(pathlib.Path(sys.argv[1])) as path:
    (path / "half.bin").write_bytes(b"half")
    print(path, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process with a temporary folder in `tmp_path`; (the process, the folder)."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, pathlib.Path(process.stdout.readline().strip())
    process.kill()
    process.wait()


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_has_is_not(tmp_path, holder):
    process, folder = holder
    os.utime(folder, (0, 0))  # age decides nothing
    with scratch.scratch(tmp_path) as own:
        assert sorted(tmp_path.iterdir()) == sorted([folder, own])
    assert scratch.sweep(tmp_path) == [] and (folder / "half.bin").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.iterdir()) == [folder]  # a killed process cannot remove it
    with scratch.scratch(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_lock_was_never_made_is_removed(tmp_path):
    (tmp_path / f"{scratch.PREFIX}0" / "deep").mkdir(parents=True)
    (tmp_path / "others.tmp").mkdir()
    assert scratch.sweep(tmp_path) == [tmp_path / f"{scratch.PREFIX}0"]
    assert scratch.sweep(tmp_path / "missing") == []


def test_a_folder_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    real, calls = scratch._try_lock, []

    def swept_first(path):
        calls.append(path)
        if len(calls) == 1:
            path.rmdir()
        return real(path)

    monkeypatch.setattr(scratch, "_try_lock", swept_first)
    with scratch.scratch(tmp_path) as path:
        assert path.is_dir() and path == calls[1] != calls[0]


def test_a_file_is_replaced_when_it_is_complete(tmp_path, monkeypatch):
    path, link = tmp_path / "x.json", tmp_path / "link.json"
    path.write_text("old")
    link.symlink_to(path)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(UserError, match="x.json: cannot be written .No space left"):
        patch.setattr(os, "fsync", full)
        with scratch.replacing(path) as new:
            new.write_text("new")
    with pytest.raises(KeyboardInterrupt), scratch.replacing(path) as new:
        new.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with scratch.replacing(link) as new:
        new.write_text("new")
    assert path.read_text() == "new" and link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.json", "x.json"]
    with scratch.replacing(pathlib.Path(os.devnull)) as new:
        assert new == pathlib.Path(os.devnull)
