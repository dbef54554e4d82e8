"""Where a loop's batches come from."""

import abc
import dataclasses
import hashlib
from typing import Any

import numpy as np

from jaxnlp.data.pipeline import TrainBatches, corpus_name
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError
from jaxnlp.training.step.program import Program


@dataclasses.dataclass(frozen=True)
class Batch:
    """One call's input. arrays: what `Program.step` reads."""

    arrays: dict[str, Any]

    def describe(self, index: int) -> str:
        """Names the batch `index` of the call's `steps_per_call`, for an error message."""
        return ""


class Feed(abc.ABC):
    """The source of a loop's batches. Its position is saved with every checkpoint, so that a resumed run reads on."""

    @abc.abstractmethod
    def next(self, state: Any) -> Batch:
        """The next batch. state: the loop's, for feeds that depend on the current parameters, as rollouts do."""

    def state(self) -> dict[str, Any]:
        """JSON values from which `restore` continues after the newest batch."""
        return {}

    def restore(self, saved: dict[str, Any], step: int) -> None:
        """Continues from `state()` as the checkpoint of `step` holds it."""
        return None


@dataclasses.dataclass(frozen=True)
class CorpusBatch(Batch):
    """Batches of a corpus: the index of their first example, and what this process read of each."""

    begins: int
    batch_size: int
    host: list[dict[str, np.ndarray]]

    def describe(self, index: int) -> str:
        begins = self.begins + index * self.batch_size
        examples = f"examples {begins} to {begins + self.batch_size - 1} of the corpus"
        return f"{examples}, fingerprint {batch_fingerprint(self.host[index])}"


class BatchFeed(Feed):
    """The train split's examples, in the order of `data/pipeline.py`, as batches on the program's mesh."""

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
        """Raises UserError where the corpus is not the one that the position was saved for."""
        corpus = corpus_name(self._store, self._data)
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
    digest = hashlib.blake2b(digest_size=6)
    for name in sorted(batch):
        digest.update(np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()
