"""The store of a split of labelled records, the counterpart of `text.store.TokenStore`.

Records are few and small, so they are tokenized when the split is opened and kept in memory.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnlp.config import field_values
from jaxnlp.data import tokenizer as tokenizers
from jaxnlp.data.records import texts
from jaxnlp.data.source import Record
from jaxnlp.data.text.store import Meta
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig
    from jaxnlp.data.tasks.labelled_task import LabelledTask


class RecordStore:
    """The records of a split and their newest encoding.

    path: name of the split, for messages. records: the records, in order. newest: the key of the newest encoding (task,
    tokenizer, length), and its examples.
    """

    def __init__(self, path: str, records: list[Record], meta: Meta, newest: tuple[Any, list[Any]]):
        self.path, self.records, self.meta, self._newest = path, records, meta, newest

    def __len__(self) -> int:
        return self.meta.num_tokens

    @property
    def bytes_per_token(self) -> None:
        """None: the targets of a labelled task are not the text, so bits per byte are undefined."""

    @property
    def description(self) -> str:
        """The size of the split, for reports."""
        return f"{len(self.records):,} records"

    def encoded(self, task: "LabelledTask", tokenizer: Tokenizer, length: int) -> list[Any]:
        """The examples of all records. The newest result is cached, since each evaluation needs it again."""
        key = _key(task, tokenizers.fingerprint(tokenizer), length)
        if self._newest[0] != key:
            self._newest = key, task.encode(self.records, tokenizer, length, lambda text: None)
        return self._newest[1]


def _key(task: "LabelledTask", tokenizer_fingerprint: str, length: int) -> tuple[str, str, int]:
    return str(task), tokenizer_fingerprint, length


def open_records(
    config: "DataConfig", task: "LabelledTask", split: str, tokenizer: Tokenizer, progress: Callable[[str], Any]
) -> RecordStore:
    """Reads the records of a split and encodes them with a task, in memory.

    Raises:
        FieldError: the source holds plain text, or the task cannot encode a record.
    """
    if not config.source.has_records:
        source, name = type(config.source).__name__, type(task).__name__
        raise FieldError(
            "data.source", source, f"contains text; {name}() needs records, for example Records(train='x.jsonl')"
        )
    records = list(config.source.records(split))
    examples = task.encode(records, tokenizer, config.seq_len, lambda text: progress(f"{split}: {text}"))
    tokenizer_fingerprint = tokenizers.fingerprint(tokenizer)
    meta = Meta(
        split=split,
        format="records",
        dtype="int32",
        num_tokens=sum(len(s.tokens) for example in examples for s in example.sequences),
        num_documents=len(records),
        num_bytes=sum(len(text.encode()) for text in texts(records)),
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
        tokenizer_fingerprint=tokenizer_fingerprint,
        source_fingerprint=config.source.fingerprint(split),
        tokens_fingerprint=_fingerprint(examples),
    )
    newest = _key(task, tokenizer_fingerprint, config.seq_len), examples
    return RecordStore(f"{type(config.source).__name__}, {split} split", records, meta, newest)


def _fingerprint(examples: list[Any]) -> str:
    """A hash of the tokens, token types and labels of the examples."""
    hasher = hashlib.blake2b(digest_size=12)
    for example in examples:
        for array in itertools.chain(*((s.tokens, s.token_type_ids) for s in example.sequences)):
            hasher.update(np.ascontiguousarray(array).tobytes())
        hasher.update(_bytes(example.label))
    return hasher.hexdigest()


def _bytes(label: Any) -> bytes:
    parts = dataclasses.is_dataclass(label)
    fields = list(field_values(label).values()) if parts else [label]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in fields)
