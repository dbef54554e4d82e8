"""Truncated entries of JAX's compilation cache.

JAX writes an entry in place. A process that is killed then, or a full disk, leaves a truncated entry, which JAX neither
reads nor replaces: every later run warns of it and compiles the program anew.
"""

import contextlib
import os
import pathlib
import zlib

import zstandard

STAMP = ".checked"
"""A file whose time is that of the last check, so that only newer entries are read."""
MAGIC = b"\x28\xb5\x2f\xfd"


def remove_truncated(folder: pathlib.Path) -> list[str]:
    """Removes the truncated entries of the cache and returns their names.

    An entry that another process is writing may be among them. That process is not disturbed; its program is compiled
    again when it is next needed.
    """
    removed = []
    with contextlib.suppress(OSError):  # no cache yet, or one that is only read
        stamp = folder / STAMP
        checked = stamp.stat().st_mtime_ns if stamp.exists() else 0
        stamp.touch()
        for entry in os.scandir(folder):
            if entry.name.endswith("-cache") and entry.stat().st_mtime_ns >= checked:
                with contextlib.suppress(FileNotFoundError):  # another process removes it
                    if not is_complete(folder / entry.name):
                        os.unlink(entry)
                        removed.append(entry.name)
    return removed


def is_complete(path: pathlib.Path) -> bool:
    """Whether an entry ends where its compressed data does, by the sizes of its blocks (RFC 8878, section 3.1.1)."""
    with path.open("rb") as file:
        head = file.read(18)
        if len(head) < 8:  # shorter than any compressed data
            return False
        if not head.startswith(MAGIC):
            return head[0] != 0x78 or _is_complete_zlib(head + file.read())  # of an unknown kind, or zlib's
        try:
            has_checksum = zstandard.get_frame_parameters(head).has_checksum
        except zstandard.ZstdError:  # truncated in its header
            return False
        end, is_last = zstandard.frame_header_size(head), False
        while not is_last:
            file.seek(end)
            block = int.from_bytes(file.read(3).ljust(3, b"\xff"), "little")
            is_last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            end += 3 + (1 if kind == 1 else size)  # a block of kind 1 repeats one byte
        return end + 4 * has_checksum <= path.stat().st_size


def _is_complete_zlib(data: bytes) -> bool:
    stream = zlib.decompressobj()
    try:
        stream.decompress(data)
    except zlib.error:
        return False
    return stream.eof
