"""Beam search: the few best continuations found together, in one jitted loop over a static cache.

Each step extends every live beam by every token and keeps the best; those that ended compete, by
score over length, for the row's finished texts. The rules for when a row may stop are those of transformers.
Shape legend: B batch, P prompt length, T new tokens, N beams, C candidates (2N), V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import FieldError
from jaxnlp.generate.decode import Generator, cache_lengths, grow, whole
from jaxnlp.generate.sampling import NEVER

WORST = -1e9  # the score of a beam that is not there


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """How wide to search and when to stop.

    num_beams: beams a row. num_return: how many finished texts to give for each, best first.
    length_penalty: a text's score is its log-probability over length ** length_penalty (its end counts as a token):
        above 0 favours long texts, 0 compares plain log-probabilities (Wu et al. 2016, arXiv:1609.08144, eq. 14,
        in the form of transformers).
    early_stopping: True stops a row at num_beams finished texts, as a single beam always does (greedy search); False
        when the best live beam, at its present length, cannot beat the worst of them; "never" when it could not even
        at the full length.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return: int = 1

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise FieldError("num_beams", self.num_beams, "expected a positive number")
        if not 1 <= self.num_return <= self.num_beams:
            raise FieldError("num_return", self.num_return, f"expected 1 to num_beams={self.num_beams}")
        if self.early_stopping not in (True, False, "never"):
            raise FieldError("early_stopping", self.early_stopping, "expected True, False or 'never'")

    @property
    def stops_when_full(self) -> bool:
        return self.early_stopping is True or self.num_beams == 1


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A finished text: its tokens without the separator that ends it, and its score."""

    ids: list[int]
    score: float


def beam_search(
    generator: Generator,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    beams: BeamSearch = BeamSearch(),
) -> list[list[Hypothesis]]:
    """The `num_return` best continuations of each prompt, best first.

    Raises:
        UserError: no prompts, nothing to generate, or more positions than the model has.
    """
    tokens_BP, segments_BP = generator.rows(prompts, max_new_tokens)
    with generator.context(len(prompts)):
        held = generator.hold(params)
        out_BNT, lengths_BN, scores_BN = _search(generator, held, tokens_BP, segments_BP, max_new_tokens, beams)
    found = []
    for out_NT, lengths_N, scores_N in zip(*map(np.asarray, (out_BNT, lengths_BN, scores_BN)), strict=True):
        row = []
        for ids, length, score in zip(out_NT.tolist(), lengths_N.tolist(), scores_N.tolist(), strict=True):
            ids = ids[:length]
            row.append(Hypothesis(ids[:-1] if ids and ids[-1] == generator.separator else ids, score))
        found.append(row[: beams.num_return])
    return found


@dataclasses.dataclass(frozen=True)
class _Beams:
    """N texts a row: tokens (B, N, T), their number (B, N), scores (B, N), and whether they are there (B, N)."""

    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    there: jax.Array

    def best(self, count: int) -> tuple["_Beams", jax.Array]:
        """The `count` best, and where they stood."""
        _, index = jax.lax.top_k(self.scores, count)
        return self.take(index), index

    def take(self, index_BN: jax.Array) -> "_Beams":
        pick = lambda x: jnp.take_along_axis(x, index_BN.reshape(*index_BN.shape, *[1] * (x.ndim - 2)), axis=1)
        return _Beams(pick(self.tokens), pick(self.lengths), pick(self.scores), pick(self.there))

    def with_(self, other: "_Beams") -> "_Beams":
        both = zip(jax.tree.leaves(self), jax.tree.leaves(other), strict=True)
        return _Beams(*(jnp.concatenate(pair, axis=1) for pair in both))


jax.tree_util.register_dataclass(_Beams, ["tokens", "lengths", "scores", "there"], [])


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _search(model: Generator, held, tokens_BP, segments_BP, max_new_tokens: int, beams: BeamSearch):
    B, P = tokens_BP.shape
    N, T = beams.num_beams, max_new_tokens
    sizes = cache_lengths(P, P + T)
    place = {"segment_ids": segments_BP, "positions": jnp.maximum(jnp.cumsum(segments_BP, axis=1) - 1, 0)}
    logits_BTV, cache = model.apply(held, tokens_BP, **place, cache=model.make_cache(B, sizes[0]), logits_to_keep=1)
    cache = _repeat(cache, N)
    count_R1 = jnp.repeat(segments_BP.sum(axis=1), N)[:, None]

    def empty() -> _Beams:
        tokens = jnp.full((B, N, T), model.separator, jnp.int32)
        return _Beams(tokens, jnp.zeros((B, N), jnp.int32), jnp.full((B, N), WORST), jnp.zeros((B, N), bool))

    live = dataclasses.replace(empty(), scores=jnp.full((B, N), WORST).at[:, 0].set(0.0))
    first_BNV = jnp.repeat(_log_probs(model, logits_BTV)[:, None], N, axis=1)
    open_B = jnp.ones(B, bool)
    begun = _extend(model, beams, T, 0, first_BNV, live, empty(), open_B)

    def body(carry):
        step, live, finished, open_B, parents_BN, _, cache = carry
        cache = _reorder(cache, parents_BN)
        last_R1 = jax.lax.dynamic_index_in_dim(live.tokens, step - 1, axis=2).reshape(B * N, 1)
        place = {"segment_ids": jnp.ones_like(last_R1), "positions": count_R1 + step - 1}
        logits_RTV, cache = model.apply(held, last_R1, **place, cache=cache)
        log_probs_BNV = _log_probs(model, logits_RTV).reshape(B, N, -1)
        return step + 1, *_extend(model, beams, T, step, log_probs_BNV, live, finished, open_B), cache

    carry: Any = (jnp.int32(1), *begun, cache)
    for size in sizes:
        *rest, cache = carry
        stop = min(size - P + 1, T)
        carry = (*rest, grow(cache, size))
        carry = jax.lax.while_loop(lambda c, stop=stop: (c[0] < stop) & c[5], body, carry)
    finished = carry[2]
    return tuple(whole(x) for x in (finished.tokens, finished.lengths, finished.scores))


def _log_probs(model: Generator, logits_RTV) -> jax.Array:
    """(R, V): of the next token; of a padded vocabulary's ids, never."""
    logits_RV = logits_RTV[:, -1]
    real = jnp.arange(logits_RV.shape[-1]) < model.num_tokens
    return jax.nn.log_softmax(jnp.where(real, logits_RV, NEVER), axis=-1)


def _extend(model, beams, T, step, log_probs_BNV, live: _Beams, finished: _Beams, open_B):
    """One step: live and finished beams after it, which rows may improve, the live ones' parents, whether to go on."""
    B, N, V = log_probs_BNV.shape
    width = min(2 * N, N * V)  # even if N of them end here, N go on
    scores_BC, flat_BC = jax.lax.top_k((live.scores[..., None] + log_probs_BNV).reshape(B, -1), width)
    parents_BC, ids_BC = flat_BC // V, (flat_BC % V).astype(jnp.int32)
    tokens_BCT = live.take(parents_BC).tokens
    tokens_BCT = jax.lax.dynamic_update_slice_in_dim(tokens_BCT, ids_BC[..., None], step, axis=2)
    length = step + 1
    ended_BC = (ids_BC == model.separator) | (length == T)
    candidates = _Beams(tokens_BCT, jnp.full_like(ids_BC, length), scores_BC, ~ended_BC)

    going = dataclasses.replace(candidates, scores=jnp.where(ended_BC, scores_BC + WORST, scores_BC))
    live, chosen_BN = going.best(N)
    parents_BN = jnp.take_along_axis(parents_BC, chosen_BN, axis=1)

    # Of those that ended, only the N best candidates of the step count: the others stand by.
    counts_BC = ended_BC & (jnp.arange(width) < N)
    full_B1 = finished.there.all(axis=1, keepdims=True) if beams.stops_when_full else jnp.zeros((B, 1), bool)
    barred_BC = ~counts_BC | full_B1 | ~open_B[:, None]
    normed_BC = scores_BC / jnp.float32(length) ** beams.length_penalty
    done = dataclasses.replace(candidates, scores=jnp.where(barred_BC, 2 * WORST, normed_BC), there=counts_BC)
    finished, _ = finished.with_(done).best(N)

    reach = T if beams.early_stopping == "never" and beams.length_penalty > 0 else length
    hope_B1 = live.scores[:, :1] / jnp.float32(reach) ** beams.length_penalty
    worst_BN = jnp.where(finished.there, finished.scores.min(axis=1, keepdims=True), WORST)
    open_B = open_B & (hope_B1 > worst_BN).any(axis=1)
    more = open_B.any() & ~ended_BC.all()
    if beams.stops_when_full:
        more = more & ~finished.there.all()
    return live, finished, open_B, parents_BN, more


def _repeat(cache: dict[str, Any], times: int) -> dict[str, Any]:
    """The cache with each row so many times, one for each beam."""
    layers = jax.tree.map(lambda x: jnp.repeat(x, times, axis=x.ndim - 4), cache["layers"])
    return {**cache, "layers": layers, "segments": jnp.repeat(cache["segments"], times, axis=0)}


def _reorder(cache: dict[str, Any], parents_BN: jax.Array) -> dict[str, Any]:
    """The cache with each beam's keys and values those of its parent; beams of a row share its segments."""
    B, N = parents_BN.shape
    rows_R = (parents_BN + N * jnp.arange(B)[:, None]).reshape(-1)
    return {**cache, "layers": jax.tree.map(lambda x: jnp.take(x, rows_R, axis=x.ndim - 4), cache["layers"])}
