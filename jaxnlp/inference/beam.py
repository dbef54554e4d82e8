"""Beam search over a static cache, in one jitted loop.

Each step extends every live beam by every token and keeps the best. Beams that end are ranked by length-normalised
score among the row's finished texts. Stopping criteria follow transformers.
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
from jaxnlp.inference.cache import cache_lengths, grow, reorder, repeat
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.loop import log_probs, prompt_seen, replicate
from jaxnlp.inference.processors import Processors, is_end, process, seen_in
from jaxnlp.inference.rows import Ids, Rows

WORST = -1e9  # score of an empty beam slot


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch(Processors):
    """Options of beam search. The options of `Processors` apply to log-probabilities here.

    num_beams: beams per row.
    length_penalty: a text's score is its log-probability / length ** length_penalty, where the length includes
        the final end-of-text token. Above 0 favours longer texts; 0 compares plain log-probabilities (Wu et al. 2016,
        arXiv:1609.08144, eq. 14, in the form used by transformers).
    early_stopping: when a row stops. True: once num_beams texts are finished (always so for num_beams=1, greedy
        search). False: when the best live beam, scored at its current length, cannot beat the worst finished text.
        "never": when it could not do so at the full length either.
    num_return: finished texts returned per prompt, best first.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_beams < 1:
            raise FieldError("num_beams", self.num_beams, "expected 1 or more")
        if not 1 <= self.num_return <= self.num_beams:
            raise FieldError("num_return", self.num_return, f"expected 1 to num_beams={self.num_beams}")
        if self.early_stopping not in (True, False, "never"):
            raise FieldError("early_stopping", self.early_stopping, "expected True, False or 'never'")

    @property
    def stops_when_full(self) -> bool:
        return self.early_stopping is True or self.num_beams == 1


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A finished text and its score.

    ids: tokens, forced ones first, without the end-of-text token that ends the text.
    score: the sum of the new tokens' log-probabilities / (number of new tokens) ** length_penalty. The end-of-text
        token counts as a new token, forced tokens do not. The log-probabilities are those after `Processors`.
    log_probs, end_log_prob: the model's unmodified log-probabilities, as in `Generation`. Exhaustive search does not
        set them.
    """

    ids: list[int]
    score: float
    log_probs: list[float] = dataclasses.field(default_factory=list)
    end_log_prob: float | None = None


def beam_search(
    generator: Generator,
    params: Any,
    prompts: Ids,
    max_new_tokens: int,
    beams: BeamSearch = BeamSearch(),
    *,
    forced_prefix: Ids | None = None,
    adapter_ids: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """The `num_return` best continuations of each prompt, best first.

    Args:
        prompts, forced_prefix, adapter_ids: as for `Generator.generate`.

    Raises:
        UserError: no prompts, max_new_tokens below 1, or more positions than the model has.
    """
    forced = forced_prefix or [[]] * len(prompts)
    rows = generator.rows(prompts, max_new_tokens, forced, adapter_ids)
    with generator.context(len(prompts)):
        decode_params = generator.prepare_params(params)
        results = _search(generator, decode_params, rows, max_new_tokens, beams, max(map(len, forced)))
    finished, forced_BK = jax.tree.map(np.asarray, results)
    texts = []
    for i, prefix in enumerate(forced):
        first = forced_BK[i, forced_BK.shape[1] - len(prefix) :].tolist()
        row = []
        for n in range(beams.num_return):
            length = int(finished.lengths[i, n])
            total = finished.scores[i, n] * float(length) ** beams.length_penalty
            if not finished.filled[i, n] or not total > WORST / 2:
                break  # the row has no more texts
            ids, log_probs = (x[i, n, :length].tolist() for x in (finished.tokens, finished.log_probs))
            end = log_probs.pop() if ids and ids[-1] in generator.end_ids else None
            ids = ids[: len(log_probs)]
            row.append(Hypothesis([*prefix, *ids], float(finished.scores[i, n]), [*first, *log_probs], end))
        texts.append(row)
    return texts


@dataclasses.dataclass(frozen=True)
class _Beams:
    """N texts per row.

    tokens, log_probs: (B, N, T), the latter the model's unmodified log-probabilities. lengths, scores: (B, N).
    filled: (B, N), whether the slot holds a text.
    """

    tokens: jax.Array
    log_probs: jax.Array
    lengths: jax.Array
    scores: jax.Array
    filled: jax.Array

    def best(self, count: int) -> tuple["_Beams", jax.Array]:
        """The `count` best texts of each row, and their indices (B, count)."""
        _, index = jax.lax.top_k(self.scores, count)
        return self.take(index), index

    def take(self, index_BN: jax.Array) -> "_Beams":
        pick = lambda x: jnp.take_along_axis(x, index_BN.reshape(*index_BN.shape, *[1] * (x.ndim - 2)), axis=1)
        return jax.tree.map(pick, self)

    def with_(self, other: "_Beams") -> "_Beams":
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), self, other)


jax.tree_util.register_dataclass(_Beams, ["tokens", "log_probs", "lengths", "scores", "filled"], [])


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _search(model: Generator, decode_params, rows: Rows, max_new_tokens: int, beams: BeamSearch, forced: int):
    """(finished texts, best first; log-probabilities of the forced tokens (B, K), right-aligned)."""
    B, P = rows.tokens.shape
    N, T = beams.num_beams, max_new_tokens
    sizes = cache_lengths(P, P + T)
    logits_BTV, cache = model.prefill(decode_params, rows, model.new_cache(decode_params, B, sizes[0]), 1 + forced)
    logits_BTV = model.mask_padded_ids(logits_BTV)
    forced_BK = log_probs(logits_BTV[:, :-1], rows.tokens[:, P - forced :])
    cache = repeat(cache, N)
    adapter_ids_R = None if rows.adapter_ids is None else jnp.repeat(rows.adapter_ids, N)
    count_R1 = jnp.repeat(rows.count_B, N)[:, None]
    prompt_BV = prompt_seen(rows, beams.repetition_penalty, logits_BTV.shape[-1])
    prompt_RV = None if prompt_BV is None else jnp.repeat(prompt_BV, N, axis=0)
    extend = functools.partial(_extend, model.end_ids, beams, T, prompt_RV)

    def empty() -> _Beams:
        tokens_BNT = jnp.full((B, N, T), model.eos_id, jnp.int32)
        zeros, no_BN = jnp.zeros((B, N), jnp.int32), jnp.zeros((B, N), bool)
        return _Beams(tokens_BNT, jnp.zeros((B, N, T)), zeros, jnp.full((B, N), WORST), no_BN)

    live = dataclasses.replace(empty(), scores=jnp.full((B, N), WORST).at[:, 0].set(0.0))
    first_step = extend(0, jnp.repeat(logits_BTV[:, -1:], N, axis=1), live, empty(), jnp.ones(B, bool))

    def body(carry):
        step, live, finished, open_B, parents_BN, _, cache = carry
        cache = reorder(cache, parents_BN)
        last_R1 = jax.lax.dynamic_index_in_dim(live.tokens, step - 1, axis=2).reshape(B * N, 1)
        logits_RTV, cache = model.step(decode_params, last_R1, count_R1 + step - 1, cache, adapter_ids_R)
        logits_BNV = model.mask_padded_ids(logits_RTV[:, -1]).reshape(B, N, -1)
        return step + 1, *extend(step, logits_BNV, live, finished, open_B), cache

    carry: Any = (jnp.int32(1), *first_step, cache)
    for size in sizes:
        *carried, cache = carry
        stop = min(size - P + 1, T)
        carry = (*carried, grow(cache, size + model.num_virtual_tokens))
        carry = jax.lax.while_loop(lambda c, stop=stop: (c[0] < stop) & c[5], body, carry)
    return jax.tree.map(replicate, (carry[2], forced_BK))


def _extend(end_ids, beams, T, prompt_RV, step, logits_BNV, live: _Beams, finished: _Beams, open_B):
    """One step of the search.

    Returns:
        (live beams, finished beams, which rows may still improve (B,), parents of the live beams (B, N), whether the
        loop continues).
    """
    B, N, V = logits_BNV.shape
    width = min((1 + len(end_ids)) * N, N * V)  # if each beam ends in every way, N remain live
    raw_BNV = jax.nn.log_softmax(logits_BNV, axis=-1)
    totals_BNV = live.scores[..., None] + _processed(end_ids, beams, prompt_RV, step, raw_BNV, live)
    scores_BC, flat_BC = jax.lax.top_k(totals_BNV.reshape(B, -1), width)
    parents_BC, ids_BC = flat_BC // V, (flat_BC % V).astype(jnp.int32)
    raw_BC = jnp.take_along_axis(raw_BNV.reshape(B, -1), flat_BC, axis=1)
    write = lambda x_BCT, new_BC: jax.lax.dynamic_update_slice_in_dim(x_BCT, new_BC[..., None], step, axis=2)
    parents = live.take(parents_BC)
    length = step + 1
    ended_BC = is_end(ids_BC, end_ids) | (length == T)
    lengths_BC = jnp.full_like(ids_BC, length)
    candidates = _Beams(
        write(parents.tokens, ids_BC), write(parents.log_probs, raw_BC), lengths_BC, scores_BC, ~ended_BC
    )

    continuing = dataclasses.replace(candidates, scores=jnp.where(ended_BC, scores_BC + WORST, scores_BC))
    live, selected_BN = continuing.best(N)
    parents_BN = jnp.take_along_axis(parents_BC, selected_BN, axis=1)

    # An ended beam is kept only if it is among the N best candidates of the step.
    counts_BC = ended_BC & (jnp.arange(width) < N)
    full_B1 = finished.filled.all(axis=1, keepdims=True) if beams.stops_when_full else jnp.zeros((B, 1), bool)
    barred_BC = ~counts_BC | full_B1 | ~open_B[:, None]
    normed_BC = scores_BC / jnp.float32(length) ** beams.length_penalty
    ended = dataclasses.replace(candidates, scores=jnp.where(barred_BC, 2 * WORST, normed_BC), filled=counts_BC)
    finished, _ = finished.with_(ended).best(N)

    best_length = T if beams.early_stopping == "never" and beams.length_penalty > 0 else length
    best_live_B1 = live.scores[:, :1] / jnp.float32(best_length) ** beams.length_penalty
    worst_BN = jnp.where(finished.filled, finished.scores.min(axis=1, keepdims=True), WORST)
    open_B = open_B & (best_live_B1 > worst_BN).any(axis=1)
    continues = open_B.any() & ~ended_BC.all()
    if beams.stops_when_full:
        continues = continues & ~finished.filled.all()
    return live, finished, open_B, parents_BN, continues


def _processed(end_ids, beams: BeamSearch, prompt_RV, step, raw_BNV, live: _Beams) -> jax.Array:
    """(B, N, V): log-probabilities after `Processors`, which beam scores accumulate."""
    R, seen_RV = raw_BNV.shape[0] * raw_BNV.shape[1], None
    if prompt_RV is not None:
        tokens_RT = live.tokens.reshape(R, -1)
        written_RT = jnp.broadcast_to(jnp.arange(tokens_RT.shape[1]) < step, tokens_RT.shape)
        seen_RV = prompt_RV | seen_in(tokens_RT, written_RT, raw_BNV.shape[-1])
    return process(raw_BNV.reshape(R, -1), beams, end_ids, step, seen_RV).reshape(raw_BNV.shape)
