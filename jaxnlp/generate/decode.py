"""Generating text: one jitted loop over a static key-value cache.

Prompts of different lengths are padded on the left, so that every row writes its next token at
the same place; segment 0 keeps the padding out of attention, and positions count real
tokens only. The cache begins small and doubles as the text grows, since each step reads all of it.

Shape legend: B batch, P prompt length, T new tokens, V vocabulary.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxnlp.errors import UserError
from jaxnlp.generate.sampling import NEVER, Sampling, sample

FIRST_CACHE = 64  # positions in the first cache; it doubles from there


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model ready to generate.

    apply: (params, tokens, segment_ids=, positions=, cache=, logits_to_keep=) -> (logits, cache).
    make_cache: (batch, length) -> an empty cache.
    longest: positions the model can read, or None where there is no end.
    separator: the token that ends a text, and begins one without a prompt.
    num_tokens: ids from here on (a padded vocabulary) are never generated.
    context: (batch size) -> what is entered around the model, for its mesh and rules.
    hold: parameters -> what `apply` takes, where it wants them laid out for reading.
    """

    apply: Callable
    make_cache: Callable[[int, int], Any]
    longest: int | None
    separator: int
    num_tokens: int
    context: Callable[[int], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    hold: Callable[[Any], Any] = lambda params: params

    def __call__(
        self,
        params: Any,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        seed: int = 0,
    ) -> list[list[int]]:
        """Continues each prompt, up to the separator or `max_new_tokens`.

        Raises:
            UserError: no prompts, nothing to generate, or more positions than the model has.
        """
        tokens_BP, segments_BP = self.rows(prompts, max_new_tokens)
        with self.context(len(prompts)):
            held = self.hold(params)
            out_BT = self._run(held, tokens_BP, segments_BP, jax.random.key(seed), max_new_tokens, sampling)
        return [self._until_separator(row) for row in np.asarray(out_BT).tolist()]

    def rows(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompts after their separators, padded on the left: tokens_BP, and segments_BP with 0 on padding.

        Raises:
            UserError: no prompts, nothing to generate, or more positions than the model has.
        """
        if not prompts or max_new_tokens < 1:
            raise UserError(
                f"generate: {len(prompts)} prompts and max_new_tokens={max_new_tokens}; expected at least one of each"
            )
        # A prompt begins a document, as every document in training does.
        rows = [[self.separator, *prompt] for prompt in prompts]
        longest = max(len(row) for row in rows)
        if self.longest is not None and longest + max_new_tokens > self.longest:
            raise UserError(
                f"generate: {longest - 1} prompt tokens, one separator and max_new_tokens={max_new_tokens} "
                f"are more than model.max_len={self.longest}; shorten the prompt or generate fewer"
            )
        tokens_BP = np.full((len(rows), longest), self.separator, np.int32)
        segments_BP = np.zeros_like(tokens_BP)
        for i, row in enumerate(rows):
            tokens_BP[i, longest - len(row) :] = row
            segments_BP[i, longest - len(row) :] = 1
        return tokens_BP, segments_BP

    def room(self, prompts: Sequence[Sequence[int]], wanted: int) -> int:
        """`wanted` new tokens, or as many as fit after the longest prompt (one at least, which may then be refused)."""
        if self.longest is None:
            return wanted
        return max(1, min(wanted, self.longest - max(map(len, prompts), default=0) - 1))

    def _until_separator(self, row: list[int]) -> list[int]:
        return row[: row.index(self.separator)] if self.separator in row else row

    @functools.partial(jax.jit, static_argnums=(0, 5, 6))
    def _run(self, held, tokens_BP, segments_BP, key, max_new_tokens, sampling):
        return decode(self, held, tokens_BP, segments_BP, key, max_new_tokens, sampling)


def decode(model: Generator, held, tokens_BP, segments_BP, key, max_new_tokens: int, sampling: Sampling) -> jax.Array:
    """(B, T) new tokens; a finished row goes on with separators.

    Args:
        held: parameters, as `model.hold` gives them.
        tokens_BP: left-padded prompts. segments_BP: 1 on real tokens, 0 on padding.
    """
    B, P = tokens_BP.shape
    total = P + max_new_tokens
    lengths = cache_lengths(P, total)
    count_B = segments_BP.sum(axis=1)
    positions_BP = jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0)
    cache = model.make_cache(B, lengths[0])

    def next_token(logits_BTV, step):
        logits_BV = logits_BTV[:, -1]
        if logits_BV.shape[-1] > model.num_tokens:
            logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1]) < model.num_tokens, logits_BV, NEVER)
        return sample(logits_BV, jax.random.fold_in(key, step), sampling)

    place = {"segment_ids": segments_BP, "positions": positions_BP}
    logits_BTV, cache = model.apply(held, tokens_BP, **place, cache=cache, logits_to_keep=1)
    token_B = next_token(logits_BTV, 0)
    out_BT = jnp.full((B, max_new_tokens), model.separator, jnp.int32)
    one_B1 = jnp.ones((B, 1), jnp.int32)

    def body(carry):
        step, token_B, done_B, out_BT, cache = carry
        out_BT = jax.lax.dynamic_update_slice(out_BT, token_B[:, None], (0, step))
        place = {"segment_ids": one_B1, "positions": (count_B + step)[:, None]}
        logits_BTV, cache = model.apply(held, token_B[:, None], **place, cache=cache)
        token_B = jnp.where(done_B, model.separator, next_token(logits_BTV, step + 1))
        return step + 1, token_B, done_B | (token_B == model.separator), out_BT, cache

    carry = (jnp.int32(0), token_B, token_B == model.separator, out_BT, cache)
    for length in lengths:
        step, token_B, done_B, out_BT, cache = carry
        carry = (step, token_B, done_B, out_BT, grow(cache, length))
        stop = min(length - P, max_new_tokens - 1)
        carry = jax.lax.while_loop(lambda c, stop=stop: (c[0] < stop) & ~c[2].all(), body, carry)
    step, token_B, _, out_BT, _ = carry
    out_BT = jax.lax.dynamic_update_slice(out_BT, token_B[:, None], (0, step))
    return whole(out_BT)


def whole(x: jax.Array) -> jax.Array:
    """x, whole on every device, and so in every process."""
    several = jax.sharding.get_abstract_mesh().size > 1
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if several else x


def cache_lengths(prompt: int, total: int) -> list[int]:
    """The lengths a cache goes through: doubling from one that holds the prompt, up to `total`."""
    length = FIRST_CACHE
    while length <= prompt:
        length *= 2
    lengths = []
    while length < total:
        lengths.append(length)
        length *= 2
    return [*lengths, total]


def grow(cache: dict[str, Any], length: int) -> dict[str, Any]:
    """The cache with room for `length` positions: S is axis -2 of keys and values, axis 1 of segments."""

    def pad(x, axis):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, length - x.shape[axis])
        return jnp.pad(x, widths)

    layers = jax.tree.map(lambda x: pad(x, x.ndim - 2), cache["layers"])
    return {**cache, "layers": layers, "segments": pad(cache["segments"], 1)}
