"""Feeds: the sources of a loop's batches."""

import abc
import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from jaxnlp.data.pipeline import TrainBatches, corpus_fingerprint
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError
from jaxnlp.training.step.program import Program


@dataclasses.dataclass(frozen=True)
class Batch:
    """The input of one call. arrays: the argument `batch` of `Program.step`."""

    arrays: dict[str, jax.Array] | dict[str, np.ndarray]

    def describe(self, index: int) -> str:
        """Describes batch `index` of the call's `steps_per_call` batches, for an error message."""
        return ""


class Feed(abc.ABC):
    """The source of a loop's batches. Every checkpoint stores its state, from which a resumed run continues."""

    @abc.abstractmethod
    def next(self, state: Any) -> Batch:
        """The next batch. state: the loop's, for feeds that use the current parameters, such as rollouts."""

    def state(self) -> dict[str, Any]:
        """JSON values from which `restore` continues after the newest batch."""
        return {}

    def restore(self, saved: dict[str, Any], step: int) -> None:
        """Continues from `state()`, as saved in the checkpoint of `step`."""
        return None


UNREAD: dict[str, Any] = {"position": 0, "corpus": None}
"""The saved state of a feed that has not opened its corpus, as in an imported run."""


@dataclasses.dataclass(frozen=True)
class CorpusBatch(Batch):
    """Batches of a corpus. begins: index of their first example. host: this process's rows of each batch."""

    begins: int
    batch_size: int
    host: list[dict[str, np.ndarray]]

    def describe(self, index: int) -> str:
        begins = self.begins + index * self.batch_size
        examples = f"examples {begins} to {begins + self.batch_size - 1} of the corpus"
        return f"{examples}, fingerprint {batch_fingerprint(self.host[index])}"


class BatchFeed(Feed):
    """Batches of the train split on the program's mesh, in the order of `data/pipeline.py`."""

    def __init__(self, program: Program, store: Any, tokenizer: Tokenizer):
        self._program, self._store, self._tokenizer = program, store, tokenizer
        self._data, self._count = program.experiment.data, program.experiment.steps_per_call
        self._batches = self._open(0)

    def next(self, state: Any) -> CorpusBatch:
        begins = self._batches.position
        host = [next(self._batches) for _ in range(self._count)]
        arrays = self._program.shard_batch(host[0]) if self._count == 1 else self._program.shard_batches(host)
        return CorpusBatch(arrays, begins, self._data.batch_size, host)

    def state(self) -> dict[str, Any]:
        return self._batches.state

    def restore(self, saved: dict[str, Any], step: int) -> None:
        """Raises UserError if the corpus is not the one for which the position was saved."""
        if "corpus" not in saved or "position" not in saved:
            raise UserError(
                f"the checkpoint of step {step} was saved with another feed: it has no position in a corpus; "
                "resume with the same make_feed, or choose another workdir"
            )
        if saved == UNREAD:
            return
        corpus = corpus_fingerprint(self._store, self._data)
        saved_corpus = saved["corpus"].partition(" examples=")[0]  # earlier versions named the examples here too
        if saved_corpus != corpus:
            raise UserError(
                f"data.source: the corpus has changed since the checkpoint of step {step} "
                f"(was: {saved_corpus}; is: {corpus}), so the saved position is no longer valid; "
                "restore the corpus, or choose another --workdir"
            )
        self._batches = self._open(saved["position"])

    def _open(self, position: int) -> TrainBatches:
        return TrainBatches(self._store, self._data, position, self._program.local_row_indices, self._tokenizer)


def batch_fingerprint(batch: dict[str, np.ndarray]) -> str:
    """A short hash of this process's rows of a batch."""
    hasher = hashlib.blake2b(digest_size=6)
    for name in sorted(batch):
        hasher.update(np.ascontiguousarray(batch[name]).tobytes())
    return hasher.hexdigest()
