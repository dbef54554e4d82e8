"""The token store: one split of a corpus as a single sequence of tokens on disk.

    eos, document, eos, document, ..., eos

A store is a folder with `meta.json` and the tokens, either in one memory-mapped file (`tokens.bin`) or in ArrayRecord
files of equal blocks. Any range can be read directly, which makes shuffling, sharding and exact resumption cheap.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jaxnlp import config as configs
from jaxnlp import strict_json
from jaxnlp.data import tokenizer as tokenizers
from jaxnlp.data import worker_pool
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError, reading
from jaxnlp.paths import local
from jaxnlp.runtime import command, option
from jaxnlp.scratch import scratch, sync, write_errors

MEMORY = "free memory, or split long texts (data.source.document='paragraph'); nothing half-written is left"
VERSION = 2
BLOCK = 8192  # tokens in an ArrayRecord record
FORMATS = ("memmap", "array_record")
DTYPES = ("uint16", "uint32")
REMEDY = "free disk space or choose another folder (for caches: $JAXNLP_CACHE or data.cache_dir)"
SAVED_NAMES = {
    "eos_id": "separator",
    "tokenizer_fingerprint": "tokenizer",
    "source_fingerprint": "source",
    "tokens_fingerprint": "content",
}
"""Field of `Meta` -> its name in meta.json, where they differ: stores written before a rename can be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """Metadata of a store: counts, dtype and provenance.

    num_bytes: number of bytes of UTF-8 text, without the end-of-text tokens.
    tokenizer_fingerprint, source_fingerprint, tokens_fingerprint: hashes of the tokenizer, of the source and of the
        tokens.
    """

    split: str
    format: str
    dtype: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    eos_id: int
    vocab_size: int
    tokenizer_fingerprint: str
    source_fingerprint: str
    tokens_fingerprint: str
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        return {SAVED_NAMES.get(name, name): value for name, value in dataclasses.asdict(self).items()}

    def check(self) -> None:
        """Raises ValueError for values that no store has."""
        configs.check_types(self)
        if self.format not in FORMATS or self.dtype not in DTYPES or min(self.num_tokens, self.num_documents) < 1:
            raise ValueError(f"format={self.format!r}, dtype={self.dtype!r}, {self.num_tokens} tokens")

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Meta":
        names = {old: new for new, old in SAVED_NAMES.items()}
        return cls(**{names.get(name, name): value for name, value in saved.items()})


class TokenStore:
    """Read access to a store's folder. Raises UserError if the store is missing, damaged or of another version."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = local(path)
        meta = self.path / "meta.json"
        if not meta.is_file():
            remedy = f"write one with: {command('tokenize', '--config=FILE', option('out', self.path.parent))}"
            raise UserError(f"{self.path}: no token store (meta.json is missing); {remedy}")
        with reading(meta, "damaged; tokenize the source again"):
            fields = json.loads(meta.read_text())
            if fields.get("version") != VERSION:
                raise UserError(
                    f"{meta}: version {fields.get('version')}, expected {VERSION}; tokenize the source again"
                )
            self.meta = Meta.from_json(fields)
            self.meta.check()
            self._dtype = np.dtype(self.meta.dtype)
        with reading(self.path, "its tokens are damaged; tokenize the source again"):
            self._read = self._open_memmap() if self.meta.format == "memmap" else self._open_array_record()

    def __len__(self) -> int:
        return self.meta.num_tokens

    @property
    def bytes_per_token(self) -> float:
        """Mean number of UTF-8 bytes per target, for bits per byte. `eos_id` counts as a target of zero bytes."""
        return self.meta.num_bytes / (self.meta.num_tokens - 1)

    @property
    def description(self) -> str:
        """The size of the split, for reports."""
        return f"{self.meta.num_bytes:,} bytes in {self.meta.num_documents:,} documents"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Reads the tokens from `start` to `stop` (exclusive), int32. Returns fewer at the end of the store."""
        with reading(self.path, "its tokens are damaged; tokenize the source again"):
            return self._read(start, min(stop, len(self))).astype(np.int32)

    def documents(self) -> Iterator[np.ndarray]:
        """Yields the tokens of each document, without end-of-text tokens."""
        tail = np.empty(0, np.int32)
        for start in range(1, len(self), 1 << 20):
            tail = np.concatenate([tail, self.read(start, start + (1 << 20))])
            *complete, tail = np.split(tail, np.flatnonzero(tail == self.meta.eos_id) + 1)
            for document in complete:
                yield document[:-1]

    def _open_memmap(self) -> Callable[[int, int], np.ndarray]:
        path = self.path / "tokens.bin"
        expected = self.meta.num_tokens * self._dtype.itemsize
        size = path.stat().st_size if path.exists() else 0
        if size != expected:
            raise UserError(f"{path}: {size} bytes, expected {expected}; tokenize the source again")
        tokens = np.memmap(path, self._dtype, mode="r")
        return lambda start, stop: tokens[start:stop]

    def _open_array_record(self) -> Callable[[int, int], np.ndarray]:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        files = sorted(str(p) for p in self.path.glob("tokens.array_record-*"))
        blocks: Any = ArrayRecordDataSource(files) if files else []
        expected = -(-self.meta.num_tokens // BLOCK)
        if len(blocks) != expected:
            raise UserError(
                f"{self.path}: {len(blocks)} blocks of tokens, expected {expected}; tokenize the source again"
            )

        def read(start: int, stop: int) -> np.ndarray:
            first, last = start // BLOCK, max(start, stop - 1) // BLOCK
            records = blocks.__getitems__(list(range(first, last + 1)))
            row = np.concatenate([np.frombuffer(record, self._dtype) for record in records])
            return row[start - first * BLOCK : stop - first * BLOCK]

        return read


def build_store(
    path: str | os.PathLike[str],
    documents: Iterable[str],
    tokenizer: Tokenizer,
    *,
    split: str,
    source_fingerprint: str,
    format: str = "memmap",
    workers: int = 0,
    progress: Callable[[str], Any] = lambda text: None,
) -> TokenStore:
    """Tokenizes documents into a new store. The build is atomic: if interrupted, it leaves no store.

    Args:
        documents: texts, in the order of the store.
        split, source_fingerprint: recorded in the metadata.
        format: "memmap", or "array_record" (several files, for object stores and TFDS-like tools).
        workers: number of tokenizing processes; 0 tokenizes in this process.
        progress: called with a progress message about twice a second.

    Raises:
        UserError: there are no documents, or the store cannot be written, for example because the disk is full.
    """
    path = local(path)
    log = lambda text: progress(f"{split}: {text}")
    check_replaceable(path)
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    with write_errors(path, REMEDY), scratch(path.parent) as temporary:
        folder = temporary / path.name
        folder.mkdir()
        parts = _tokenize(documents, tokenizer, dtype, workers)
        try:
            counts = _write_all(folder, format, dtype.type(tokenizer.eos_id), parts, log)
        except MemoryError:
            raise UserError(f"{split}: out of memory while tokenizing; {MEMORY}") from None
        if not counts["num_documents"]:
            raise UserError(f"{split}: the source has no documents in this split")
        meta = Meta(
            split=split,
            format=format,
            dtype=dtype.name,
            eos_id=tokenizer.eos_id,
            vocab_size=tokenizer.vocab_size,
            tokenizer_fingerprint=tokenizers.fingerprint(tokenizer),
            source_fingerprint=source_fingerprint,
            **counts,
        )
        (folder / "meta.json").write_text(strict_json.dumps(meta.to_json(), indent=1))
        sync(folder)
        TokenStore(folder)  # raises UserError if its size is not that of its tokens
        _move(folder, path, meta)
    return TokenStore(path)


def check_replaceable(path: pathlib.Path) -> None:
    """Raises UserError if `path` has files that are not a store's, since a store replaces the folder."""
    own = ("meta.json", "tokens.bin", "tokens.array_record-*")
    for file in path.iterdir() if path.is_dir() else ():
        if not any(fnmatch.fnmatch(file.name, pattern) for pattern in own):
            raise UserError(
                f"{path}: contains {file.name}, which is not part of a token store; choose another folder, as the "
                "store would replace this one"
            )


def _move(folder: pathlib.Path, path: pathlib.Path, meta: Meta) -> None:
    """Moves a store to its path, unless another process has finished the same store there first."""
    if _holds(path, meta):
        return
    old = folder.with_name(f"old-{folder.name}")  # removed with the temporary folder
    with contextlib.suppress(FileNotFoundError):  # another process has moved it
        if path.is_dir():
            path.rename(old)
    try:
        folder.rename(path)
    except OSError:
        if not _holds(path, meta):
            if old.is_dir():
                old.rename(path)
            raise


def _holds(path: pathlib.Path, meta: Meta) -> bool:
    """Whether `path` holds a complete store with this metadata."""
    try:
        return TokenStore(path).meta == meta
    except (UserError, OSError):
        return False


def _write_all(
    folder: pathlib.Path, format: str, eos_id: Any, parts: Iterable[Any], log: Callable[[str], Any]
) -> dict[str, Any]:
    """Writes `eos_id` and then the parts (ids, number of documents, number of bytes).

    Returns:
        The fields of `Meta` that depend on the documents: the counts and `tokens_fingerprint`.
    """
    counts = {"num_tokens": 1, "num_documents": 0, "num_bytes": 0}
    first = np.array([eos_id])
    hasher = hashlib.blake2b(first.tobytes(), digest_size=12)
    with (_memmap_writer if format == "memmap" else _array_record_writer)(folder) as write:
        write(first)
        start = reported = time.monotonic()
        for ids, num_documents, num_bytes in parts:
            write(ids)
            hasher.update(np.ascontiguousarray(ids).tobytes())
            counts["num_tokens"] += len(ids)
            counts["num_documents"] += num_documents
            counts["num_bytes"] += num_bytes
            if time.monotonic() - reported > 0.5:
                reported = time.monotonic()
                megabytes = counts["num_bytes"] / 1e6
                log(f"{counts['num_tokens']:,} tokens, {megabytes:,.0f} MB, {megabytes / (reported - start):.1f} MB/s")
    return {**counts, "tokens_fingerprint": hasher.hexdigest()}


@contextlib.contextmanager
def _memmap_writer(folder: pathlib.Path) -> Iterator[Callable[[np.ndarray], Any]]:
    with (folder / "tokens.bin").open("wb") as file:
        yield lambda ids: file.write(ids.tobytes())


@contextlib.contextmanager
def _array_record_writer(folder: pathlib.Path) -> Iterator[Callable[[np.ndarray], Any]]:
    """Writes blocks of BLOCK tokens, with a new file every 64 MiB."""
    from array_record.python.array_record_module import ArrayRecordWriter

    pending: list[np.ndarray] = []
    state: dict[str, Any] = {"writer": None, "blocks": 0, "files": 0}

    def block(row: np.ndarray) -> None:
        if state["writer"] is None:
            name = folder / f"tokens.array_record-{state['files']:05d}"
            state["writer"] = ArrayRecordWriter(str(name), "group_size:1")
        with _os_errors():
            state["writer"].write(row.tobytes())
        state["blocks"] += 1
        if state["blocks"] * BLOCK * row.itemsize >= 64 << 20:
            close()
            state.update(writer=None, blocks=0, files=state["files"] + 1)

    def write(ids: np.ndarray) -> None:
        pending.append(ids)
        if sum(len(r) for r in pending) >= BLOCK:
            row = np.concatenate(pending)
            num_complete = len(row) // BLOCK * BLOCK
            for start in range(0, num_complete, BLOCK):
                block(row[start : start + BLOCK])
            pending[:] = [row[num_complete:]]

    def close() -> None:
        if state["writer"] is not None:
            with _os_errors():
                state["writer"].close()

    try:
        yield write
        row = np.concatenate(pending)
        if len(row):
            block(row)
        close()
    except BaseException:
        with contextlib.suppress(OSError):  # a writer that is not closed would write at the end of the process
            close()
        raise


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raises the RuntimeError of an ArrayRecord writer, as on a full disk, as an OSError."""
    try:
        yield
    except RuntimeError as e:
        reason = str(e).partition(";")[0].rpartition("failed: ")[2]
        raise OSError(reason) from None


def _tokenize(documents, tokenizer, dtype, workers) -> Iterator[tuple[np.ndarray, int, int]]:
    if workers:
        return worker_pool.map_batches(_worker, (tokenizer.to_json(), dtype), _batches(documents), workers)
    return (_encode(tokenizer, dtype, texts) for texts in _batches(documents))


def _batches(documents: Iterable[str], size: int = 1 << 20) -> Iterator[list[str]]:
    batch, room = [], size
    for text in documents:
        batch.append(text)
        room -= len(text)
        if room <= 0:
            yield batch
            batch, room = [], size
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, dtype: np.dtype, texts: list[str]) -> tuple[np.ndarray, int, int]:
    row = [np.asarray([*ids, tokenizer.eos_id], dtype) for ids in tokenizer.encode_batch(texts)]
    return np.concatenate(row), len(texts), sum(len(text.encode()) for text in texts)


def _worker(data: dict[str, Any], dtype: np.dtype) -> Callable[[list[str]], tuple[np.ndarray, int, int]]:
    """The function of a worker process."""
    return functools.partial(_encode, tokenizers.from_json(data), dtype)
