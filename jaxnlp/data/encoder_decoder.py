"""Batches of encoder-decoders: a text to read, and a text to write after it.

Shape legend: B batch, S input length, T target length.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def shapes(S: int, T: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape (without the batch) and dtype of each array of `batch`."""
    found: dict[str, Any] = dict.fromkeys(("inputs", "input_segments"), ((S,), np.int32))
    found |= dict.fromkeys(("tokens", "segment_ids", "targets"), ((T,), np.int32))
    return {**found, "weights": ((T,), np.float32)}


def batch(
    pairs: Sequence[tuple[np.ndarray, np.ndarray] | None], S: int, T: int, fill: int, start: int
) -> dict[str, np.ndarray]:
    """The arrays of a batch.

    Args:
        pairs: (input, target) of each row, ends included, at most S and T long; None is a row of weight 0.
        fill: the token that stands where there is none. start: the first token the decoder reads.

    Returns:
        `inputs`, `input_segments` (B, S); `targets` (B, T), `tokens`, the same one place later, which the decoder
        reads, `segment_ids` and `weights` (B, T). Segment 0 is padding.
    """
    found = {name: np.zeros((len(pairs), *shape), dtype) for name, (shape, dtype) in shapes(S, T).items()}
    for name in ("inputs", "tokens", "targets"):
        found[name][:] = fill
    found["tokens"][:, 0] = start
    for i, pair in enumerate(pairs):
        if pair is not None:
            source, target = pair
            found["inputs"][i, : len(source)], found["input_segments"][i, : len(source)] = source, 1
            found["targets"][i, : len(target)], found["tokens"][i, 1 : len(target)] = target, target[:-1]
            found["segment_ids"][i, : len(target)] = found["weights"][i, : len(target)] = 1
    return found
