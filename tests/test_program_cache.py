"""Truncated entries of the compilation cache are removed, complete ones stay; `zstandard` says which are which."""

import os
import shutil
import zlib

import numpy as np
import pytest
import zstandard

from jaxnlp import runtime
from jaxnlp.program_cache import STAMP, is_complete, remove_truncated

RANDOM = np.random.default_rng(0).bytes(300_000)  # raw blocks
DATA = {"raw": RANDOM, "repeated": bytes(400_000), "mixed": RANDOM[:1000] * 300 + RANDOM, "empty": b""}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("checksum", [False, True])
def test_an_entry_is_complete_if_zstandard_can_read_it(tmp_path, kind, checksum):
    data = zstandard.ZstdCompressor(write_checksum=checksum).compress(DATA[kind])
    path = tmp_path / "x-cache"
    for size in {0, 3, 4, 6, len(data) // 2, len(data) - 1, len(data)} - set(range(len(data) + 1, 9)):
        path.write_bytes(data[:size])
        reader = zstandard.ZstdDecompressor().decompressobj()
        try:
            readable = reader.decompress(data[:size]) == DATA[kind] and reader.eof
        except zstandard.ZstdError:
            readable = False
        assert is_complete(path) == readable == (size == len(data)), size
    for size in (1, 1000, None):
        path.write_bytes(zlib.compress(RANDOM)[:size])
        assert is_complete(path) == (size is None)


def test_a_full_disk_disables_the_cache_with_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "xla"))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    runtime._choose_compilation_cache()
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "true" and capsys.readouterr().err == ""
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5 * 10**6, 5 * 10**6)
    )
    runtime._choose_compilation_cache()
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert "not cached: the disk of" in (note := capsys.readouterr().err) and "(5.0 MB are free)" in note


def test_only_truncated_entries_are_removed_and_each_is_read_once(tmp_path):
    data = zstandard.compress(RANDOM)
    for name, size in (("a-cache", None), ("b-cache", 500), ("c-atime", 0), ("d-cache", 0)):
        (tmp_path / name).write_bytes(data[:size])
    assert sorted(remove_truncated(tmp_path)) == ["b-cache", "d-cache"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [STAMP, "a-cache", "c-atime"]
    (tmp_path / "old-cache").write_bytes(b"")
    os.utime(tmp_path / "old-cache", (0, 0))
    (tmp_path / "new-cache").write_bytes(b"")
    assert remove_truncated(tmp_path) == ["new-cache"]
    assert remove_truncated(tmp_path / "missing") == []
