"""Embeddings of texts: the mean of a model's last states over the tokens of each text.

Shape legend: B batch, T length, D model.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import UserError
from jaxnlp.inference.bound_model import BoundModel
from jaxnlp.inference.fill_mask import encoder_row
from jaxnlp.inference.loop import replicate
from jaxnlp.inference.scoring import LENGTH_MULTIPLE, filled
from jaxnlp.trees import Params

BATCH = 16  # texts in one call of the model


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A decoder or an encoder without a task head, ready to embed texts."""

    model: BoundModel

    def __call__(self, params: Params, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 embeddings of N texts.

        Raises:
            UserError: a text that is empty, and the model has no start token; a text that is too long.
        """
        rows = [self.row(text) for text in texts]
        limit = self.model.config.body.length_limit
        for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
            if not row:
                raise UserError(
                    f"embed: texts[{i}] is empty; the model has no start token, so at least one token is needed"
                )
            if limit is not None and len(row) > limit:
                raise UserError(
                    f"embed: {text[:40]!r} has {len(row)} tokens; model.max_length is {limit}; shorten the text"
                )
        batches = [self._embed(params, rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
        return np.concatenate(batches) if batches else np.zeros((0, self.model.config.body.embed_dim), np.float32)

    def row(self, text: str) -> list[int]:
        """The tokens that the model reads for a text, as in training."""
        if self.model.config.kind == "encoder":
            return encoder_row(self.model, text).tokens.tolist()
        return [*self.model.start_ids, *self.model.tokenizer.encode_batch([text])[0]]

    def _embed(self, params: Params, rows: list[list[int]]) -> np.ndarray:
        # Few shapes, since each one is compiled: lengths are multiples of 16, and numbers of rows powers of two.
        limit = self.model.config.body.length_limit
        length = -(-max(map(len, rows)) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        shape = 1 << (len(rows) - 1).bit_length(), length if limit is None else min(length, limit)
        tokens_BT, segments_BT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for i, row in enumerate(filled(rows, shape[0])):
            tokens_BT[i, : len(row)], segments_BT[i, : len(row)] = row, 1
        with self.model.context(batch=None):
            return np.asarray(self._mean_states(params, tokens_BT, segments_BT))[: len(rows)]

    @functools.cached_property
    def _mean_states(self) -> Callable:
        config, apply = self.model.config, self.model.apply

        def mean(params: Params, tokens_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
            if config.kind == "encoder":
                hidden_BTD = apply(params, tokens_BT, segment_ids=segments_BT)["hidden"]
            else:
                hidden_BTD = apply(params, tokens_BT, segment_ids=segments_BT, with_hidden=True)[1]
            real_BT1 = (segments_BT != 0)[..., None]
            return replicate((hidden_BTD.astype(jnp.float32) * real_BT1).sum(1) / real_BT1.sum(1))

        return jax.jit(mean)
