"""Batches for encoder-decoder models: an input text for the encoder and a target text for the decoder.

Shape legend: B batch, S input length, T target length.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def shapes(S: int, T: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape (without the batch axis) and dtype of each array of `collate_pairs`."""
    fields: dict[str, Any] = dict.fromkeys(("inputs", "input_segments"), ((S,), np.int32))
    fields |= dict.fromkeys(("tokens", "segment_ids", "targets"), ((T,), np.int32))
    return {**fields, "weights": ((T,), np.float32)}


def collate_pairs(
    pairs: Sequence[tuple[np.ndarray, np.ndarray] | None], S: int, T: int, fill: int, decoder_start_id: int
) -> dict[str, np.ndarray]:
    """Collates pairs of texts into the arrays of a batch.

    Args:
        pairs: (input, target) of each row, including the end tokens, at most S and T long. None is a row of weight 0.
        fill: the padding token. decoder_start_id: the decoder's start token.

    Returns:
        `inputs`, `input_segments` (B, S) int32; `targets`, `tokens` (the decoder's input: the targets shifted right by
        one) and `segment_ids` (B, T) int32; `weights` (B, T) float32. Segment 0 is padding.
    """
    batch = {name: np.zeros((len(pairs), *shape), dtype) for name, (shape, dtype) in shapes(S, T).items()}
    for name in ("inputs", "tokens", "targets"):
        batch[name][:] = fill
    batch["tokens"][:, 0] = decoder_start_id
    for i, pair in enumerate(pairs):
        if pair is not None:
            source, target = pair
            batch["inputs"][i, : len(source)], batch["input_segments"][i, : len(source)] = source, 1
            batch["targets"][i, : len(target)], batch["tokens"][i, 1 : len(target)] = target, target[:-1]
            batch["segment_ids"][i, : len(target)] = batch["weights"][i, : len(target)] = 1
    return batch
