"""The data pipeline: tokenizes a source once, cuts it into examples, shuffles, batches, and resumes exactly.

The examples of all epochs form one global sequence, fixed by the seed; each epoch is shuffled anew. The position in
this sequence is a single number: the examples read so far by all processes together. Each process reads its own rows
of every batch, so a run can resume with another number of processes and reads exactly the examples not yet read.
"""

import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jaxnlp.data import tokenizer as tokenizers
from jaxnlp.data.record_store import RecordStore, open_records
from jaxnlp.data.source import Source
from jaxnlp.data.task import Batch, Reader, Task
from jaxnlp.data.tasks.labelled_task import LabelledTask
from jaxnlp.data.text import sources
from jaxnlp.data.text.packing import Packed
from jaxnlp.data.text.store import TokenStore, build_store
from jaxnlp.data.tokenizer import TokenizerConfig
from jaxnlp.errors import FieldError, UserError, reading
from jaxnlp.paths import cache_folder, local
from jaxnlp.scratch import sweep


@dataclasses.dataclass(kw_only=True)
class Tokens(Source):
    """A corpus written by `python -m experiments.tokenize`: a folder with a token store for each split."""

    path: str = ""

    def check(self) -> None:
        if not self.path:
            raise FieldError("path", self.path, "expected a folder written by experiments.tokenize")

    def documents(self, split: str) -> Iterator[str]:
        store = TokenStore(local(self.path) / split)
        tokenizer = read_tokenizer(local(self.path) / "tokenizer.json")
        return (tokenizer.decode(ids.tolist()) for ids in store.documents())

    def fingerprint(self, split: str) -> str:
        return TokenStore(local(self.path) / split).meta.source_fingerprint


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """Configuration of a dataset: the source, the tokenizer, the task and the batches.

    source: PythonStdlib(), Files(...), TFDS(...), Tokens(...), Records(...), or another `Source`.
    tokenizer: Bytes(), SentencePiece(...), HuggingFace(...); unused with Tokens, which carries its own.
    task: how the source is turned into examples: Packed(), Masked(...), SpanCorruption(...), a task of `data/tasks`,
        as SequenceClassificationTask(...), or another `Task`.
    seq_len: tokens per example. batch_size: examples per step, over all devices.
    attend_across_documents: whether attention crosses document boundaries.
    shuffle: whether to shuffle the examples, in a new order each epoch. False keeps the order of the corpus.
    seed: seed of the shuffle and of other random draws, such as masks.
    prefetch_threads: number of threads that read ahead. 0 reads on demand, which is cheapest if the model runs on the
        same cores.
    cache_dir: folder for tokenized text and trained tokenizers; "" is $JAXNLP_CACHE or ~/.cache/jaxnlp.
    """

    source: Source = dataclasses.field(default_factory=sources.PythonStdlib)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=tokenizers.SentencePiece)
    task: Task = dataclasses.field(default_factory=Packed)
    seq_len: int = 1024
    batch_size: int = 8
    attend_across_documents: bool = False
    shuffle: bool = True
    seed: int = 0
    prefetch_threads: int = 1
    cache_dir: str = ""

    def check(self) -> None:
        for field, size in (("seq_len", self.seq_len), ("batch_size", self.batch_size)):
            if size < 1:
                raise FieldError(field, size, "expected a positive number")
        if not 0 <= self.seed < 2**32:
            raise FieldError("seed", self.seed, "expected an integer in [0, 2^32)")
        if self.prefetch_threads < 0:
            raise FieldError("prefetch_threads", self.prefetch_threads, "expected 0 or more")

    @property
    def cache(self) -> pathlib.Path:
        return cache_folder(self.cache_dir)


def open_tokenizer(config: DataConfig) -> tokenizers.Tokenizer:
    """Opens the tokenizer of the corpus, training it on the train split first if necessary.

    Raises:
        FieldError: the folder of a `Tokens` source has no tokenizer.
    """
    if isinstance(config.source, Tokens):
        path = local(config.source.path) / "tokenizer.json"
        if not path.is_file():
            raise FieldError(
                "data.source.path",
                config.source.path,
                "no tokenizer.json; expected a folder written by experiments.tokenize",
            )
        return read_tokenizer(path)
    _sweep(config.cache)
    return config.tokenizer.build(lambda: config.source.documents("train"), config.cache)


def resolved(config: DataConfig) -> DataConfig:
    """Returns the config with the task fields that depend on the source filled in, such as the class names."""
    if not config.source.has_records:
        return config
    return dataclasses.replace(config, task=config.task.resolved(config.source))


def read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
    import json

    with reading(path, "not a tokenizer written by jaxnlp, or damaged"):
        return tokenizers.from_json(json.loads(path.read_text()))


def open_split(
    config: DataConfig, split: str, tokenizer: tokenizers.Tokenizer, progress: Callable[[str], Any] = lambda text: None
) -> TokenStore | RecordStore:
    """Opens the token store of a split, building it in the cache if missing. Labelled records are stored in memory.

    Raises:
        UserError: the store of a `Tokens` source was written with another tokenizer.
    """
    sources.check_split(split)
    _sweep(config.cache)
    if isinstance(config.task, LabelledTask):
        return open_records(config, config.task, split, tokenizer, progress)
    tokenizer_fingerprint = tokenizers.fingerprint(tokenizer)
    if isinstance(config.source, Tokens):
        store = TokenStore(local(config.source.path) / split)
        if store.meta.tokenizer_fingerprint != tokenizer_fingerprint:
            raise UserError(f"{store.path}: written with a tokenizer other than this run's; tokenize the source again")
        return store
    source_fingerprint = config.source.fingerprint(split)
    fingerprints = f"{source_fingerprint} {tokenizer_fingerprint}"
    name = hashlib.blake2b(fingerprints.encode(), digest_size=12).hexdigest()
    path = config.cache / "tokens" / f"{split}-{name}"
    if (path / "meta.json").exists():
        try:
            return TokenStore(path)
        except UserError as e:
            print(f"note: rebuilding a damaged cache: {e}", file=sys.stderr)
    documents = config.source.documents(split)
    return build_store(
        path, documents, tokenizer, split=split, source_fingerprint=source_fingerprint, progress=progress
    )


def _sweep(cache: pathlib.Path) -> None:
    """Removes what killed processes left in the cache."""
    for folder in ("tokenizers", "tokens", "library"):
        sweep(cache / folder)


class TrainBatches:
    """An endless iterator over this process's rows of the global batches.

    Args:
        store: the store of the split.
        config: the data config; source, tokenizer and cache_dir are not used.
        position: number of examples already read; the first batch begins after them.
        rows: the rows of each global batch that this process reads; None reads all.
        tokenizer: tokenizer of the store, if the task needs it.

    Raises:
        UserError: the store holds no tokens to train on.
    """

    def __init__(
        self,
        store: TokenStore | RecordStore,
        config: DataConfig,
        position: int = 0,
        rows: Sequence[int] | np.ndarray | None = None,
        tokenizer: tokenizers.Tokenizer | None = None,
    ):
        if len(store) < 2:
            raise UserError(f"{store.path}: contains no tokens to train on")
        reader = config.task.open(store, tokenizer, config)
        self.position, self.store, self._config = position, store, config
        self.examples_per_epoch = len(reader)
        examples = grain.MapDataset.source(reader)
        if config.shuffle:
            examples = examples.shuffle(config.seed)
        examples = examples.repeat()
        rows = range(config.batch_size) if rows is None else rows
        batches = _GlobalBatches(examples, reader, config, position, [int(row) for row in rows])
        options = grain.ReadOptions(
            num_threads=config.prefetch_threads, prefetch_buffer_size=2 * config.prefetch_threads
        )
        self._iterator = iter(batches.to_iter_dataset(options))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self.position += self._config.batch_size
        return batch

    @property
    def state(self) -> dict[str, Any]:
        """State saved in a checkpoint: the global position, and the fingerprint of the corpus."""
        return {"position": self.position, "corpus": corpus_fingerprint(self.store, self._config)}


def corpus_fingerprint(store: TokenStore | RecordStore, config: DataConfig) -> str:
    """Identifies the global sequence of examples: the tokens and how they are shuffled.

    The task is not part of it; on resuming it is compared field by field (`training/run_folder/resume.py`).
    """
    order = f"shuffle={config.shuffle} seed={config.seed} seq_len={config.seq_len}"
    tokens, tokenizer = store.meta.tokens_fingerprint, store.meta.tokenizer_fingerprint
    return f"{store.meta.num_tokens} tokens, content {tokens}, tokenizer {tokenizer}, {order}"


class _GlobalBatches(grain.MapDataset):
    """The global batches. Batch k starts at example position + k * batch_size; each process reads its own rows."""

    def __init__(
        self, examples: grain.MapDataset, reader: Reader, config: DataConfig, position: int, rows: Sequence[int]
    ):
        super().__init__(examples)
        self._config, self._position, self._reader, self._rows = config, position, reader, rows

    def __len__(self) -> int:
        return (sys.maxsize - self._position) // self._config.batch_size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        start = self._position + index * self._config.batch_size
        numbers = [start + row for row in self._rows]
        return self._reader.batch([self._parent[number] for number in numbers], numbers)


def eval_batches(
    store: TokenStore | RecordStore,
    config: DataConfig,
    limit: int | None = None,
    rows: Sequence[int] | np.ndarray | None = None,
    tokenizer: tokenizers.Tokenizer | None = None,
) -> Iterator[Batch]:
    """Yields each example of a split once, in order. The last batch is filled up with rows of weight 0.

    Args:
        limit: maximum number of batches; None reads the full split.
        rows: the rows of each batch that this process reads; None reads all.
        tokenizer: tokenizer of the store, if the task needs it.
    """
    reader = config.task.open(store, tokenizer, config)
    count = num_batches(reader, config)
    rows = range(config.batch_size) if rows is None else rows
    for k in range(count if limit is None else min(count, limit)):
        indices = [k * config.batch_size + int(row) for row in rows]
        yield reader.batch([reader[i] if i < len(reader) else None for i in indices], indices)


def num_batches(reader: Reader, config: DataConfig) -> int:
    """Number of batches that hold each example once."""
    return -(-len(reader) // config.batch_size)
