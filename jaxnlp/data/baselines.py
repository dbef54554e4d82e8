"""Baselines without a trained model: unigram entropy and general-purpose compressors."""

import dataclasses
import gzip
import lzma
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxnlp.data.text.store import TokenStore
from jaxnlp.data.tokenizer import Tokenizer

LIMIT = 8 << 20  # bytes to compress: xz -9e takes about a second per megabyte


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The scores of a trivial model on a split.

    loss: in the unit of the trained model's. accuracy, bits_per_byte: None if undefined.
    """

    name: str
    loss: float
    accuracy: float | None = None
    bits_per_byte: float | None = None


def text_baselines(store: TokenStore, tokenizer: Tokenizer) -> list[Baseline]:
    """The baselines of a model that predicts every token of a text once. Losses are in nats per token."""
    packed = compressed_bits_per_byte(store, tokenizer)
    bits = {
        "unigram entropy of the split": unigram_bits_per_byte(store),
        "gzip -9": packed["gzip"],
        "xz -9e": packed["xz"],
    }
    nats = math.log(2) * store.bytes_per_token
    return [Baseline(name, rate * nats, bits_per_byte=rate) for name, rate in bits.items()]


def unigram_bits_per_byte(store: TokenStore) -> float:
    """Entropy of the split's own token frequencies, in bits per byte of its text.

    This is the lowest loss on the split of any model that ignores context.
    """
    starts = range(1, len(store), 1 << 22)
    counts = token_counts((store.read(start, start + (1 << 22)) for start in starts), store.meta.vocab_size)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum() * counts.sum() / store.meta.num_bytes)


def unigram_of_targets(batches: Iterable[dict[str, Any]], vocab_size: int) -> tuple[float, float]:
    """(entropy in nats, accuracy) of a model that knows only the targets' own frequencies.

    The accuracy is that of always predicting the most frequent target.

    Args:
        batches: with `targets` and `weights`, as for an objective.
    """
    counts = token_counts((batch["targets"][batch["weights"] > 0].reshape(-1) for batch in batches), vocab_size)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum()), float(counts.max() / counts.sum())


def token_counts(arrays: Iterable[np.ndarray], vocab_size: int) -> np.ndarray:
    """How often each id occurs, int64; at least `vocab_size` long. Stores of earlier versions may have larger ids."""
    counts = np.zeros(vocab_size, np.int64)
    for ids in arrays:
        new = np.bincount(ids, minlength=len(counts))
        counts = np.pad(counts, (0, len(new) - len(counts))) + new
    return counts


def compressed_bits_per_byte(store: TokenStore, tokenizer: Tokenizer) -> dict[str, float]:
    """Bits per byte of the first 8 MiB of the split's text under gzip -9 and xz -9e."""
    text = bytearray()
    for ids in store.documents():
        text += tokenizer.decode(ids.tolist()).encode()
        if len(text) >= LIMIT:
            break
    data = bytes(text[:LIMIT])
    sizes = {
        "gzip": len(gzip.compress(data, 9)),
        "xz": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / len(data) for name, size in sizes.items()}
