"""Packing: cuts the token store into windows and collates windows into next-token examples.

Window i holds tokens i*T to (i+1)*T of the store and the token after them. So each token is an input once and, except
for the first, a target once: none is lost and none is repeated. The last window is padded with -1.

Shape legend: B batch, T length.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from jaxnlp.data.baselines import Baseline, text_baselines
from jaxnlp.data.samples import SampledModel
from jaxnlp.data.task import Batch, Reader, Shapes, Task
from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer

FILL = -1


if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig


@dataclasses.dataclass(kw_only=True)
class Packed(Task):
    """Next-token examples: windows of concatenated documents. The default of `DataConfig.task`."""

    packs_documents: ClassVar[bool] = True

    def open(self, store: TokenStore, tokenizer: Tokenizer | None, config: "DataConfig") -> "PackedReader":
        return PackedReader(store, config.seq_len, config.attend_across_documents)

    def shapes(self, config: "DataConfig") -> Shapes:
        names = {"tokens": np.int32, "targets": np.int32, "weights": np.float32}
        if not config.attend_across_documents:
            names |= {"segment_ids": np.int32, "positions": np.int32}
        return {name: ((config.seq_len,), dtype) for name, dtype in names.items()}

    def baselines(self, model: SampledModel) -> list[Baseline]:
        return text_baselines(model.store, model.tokenizer)


class PackedReader(Reader):
    """Batches hold the arrays of `pack`."""

    def __init__(self, store: TokenStore, length: int, attend_across_documents: bool):
        self._windows, self._across, self._eos_id = (
            Windows(store, length),
            attend_across_documents,
            store.meta.eos_id,
        )

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._windows[index]

    def batch(self, records: Sequence[np.ndarray | None], indices: Sequence[int]) -> Batch:
        fill = np.full(self._windows.length + 1, FILL, np.int32)
        rows = np.stack([fill if record is None else record for record in records])
        return pack(rows, self._eos_id, self._across)


class Windows:
    """Random access to the windows of a store: (T + 1,) int32 tokens each."""

    def __init__(self, store: TokenStore, length: int):
        self.store, self.length = store, length

    def __len__(self) -> int:
        return -(-(len(self.store) - 1) // self.length)

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(index) * self.length
        row = self.store.read(start, start + self.length + 1)
        if len(row) == self.length + 1:
            return row
        return np.concatenate([row, np.full(self.length + 1 - len(row), FILL, np.int32)])


def pack(windows: np.ndarray, eos_id: int, attend_across_documents: bool = False) -> dict[str, np.ndarray]:
    """Collates windows into the arrays of a batch.

    Args:
        windows: (B, T + 1) tokens, padded with FILL.
        eos_id: the token that begins a document.
        attend_across_documents: whether to omit segments and positions, so that attention crosses document boundaries
            and positions count from the start of the window.

    Returns:
        `tokens`, `targets` (B, T) int32; `weights` (B, T) float32, 0 if there is no target; `segment_ids` (B, T) int32,
        one id per document from 1, and 0 for padding; `positions` (B, T) int32, counted from 0 in each document. A
        document that continues from the previous window also starts at position 0.
    """
    inputs, targets = windows[:, :-1], windows[:, 1:]
    batch = {
        "tokens": np.where(inputs == FILL, eos_id, inputs),
        "targets": np.maximum(targets, 0),
        "weights": (targets != FILL).astype(np.float32),
    }
    if not attend_across_documents:
        begins = inputs == eos_id
        begins[:, 0] = True
        place = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
        first = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
        batch["segment_ids"] = np.where(inputs == FILL, 0, np.cumsum(begins, axis=1, dtype=np.int32))
        batch["positions"] = place - first
    return batch
