"""The decoding loop: choose a token, run the model on it, choose the next.

It runs as one jitted call, or in chunks that return the state after each, for callers that stream tokens. Both give
the same tokens.

Shape legend: B batch, P prompt length, T new tokens, K forced tokens, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnlp.inference.cache import cache_lengths, grow
from jaxnlp.inference.processors import is_end, process, seen_in
from jaxnlp.inference.rows import Array, Rows
from jaxnlp.inference.sampling import Sampling, sample
from jaxnlp.trees import PyTree


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """Static arguments of the loop; each value is compiled once.

    log_probs: whether to return log-probabilities. forced: length of the longest forced prefix.
    """

    max_new_tokens: int
    sampling: Sampling
    log_probs: bool
    forced: int


@dataclasses.dataclass(frozen=True)
class DecodeState:
    """State of the loop after `step` tokens.

    tokens: (B, T), filled with end-of-text tokens from `step` on. log_probs: (B, T), or None. done: (B,).
    seen: (B, V), the tokens that the repetition penalty applies to, or None. cache: the key-value cache.
    """

    step: jax.Array
    tokens: jax.Array
    log_probs: jax.Array | None
    done: jax.Array
    seen: jax.Array | None
    cache: PyTree


jax.tree_util.register_dataclass(DecodeState, ["step", "tokens", "log_probs", "done", "seen", "cache"], [])


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(model: Any, plan: DecodePlan, params: Any, rows: Rows, key: jax.Array) -> tuple[jax.Array, Any]:
    """The full loop in one call.

    Args:
        model: a `Generator`. params: returned by its `prepare_params`.

    Returns:
        (tokens_BT, log_probs): tokens are end-of-text tokens after the end of a row. log_probs is None unless
        `plan.log_probs`, else a pair: of the forced tokens (B, K), right-aligned, and of the new tokens (B, T).
    """
    P, T = rows.tokens.shape[1], plan.max_new_tokens
    state, forced_BK = _begin(model, plan, params, rows, key)
    for size in cache_lengths(P, P + T):
        state = dataclasses.replace(state, cache=grow(state.cache, size + model.num_virtual_tokens))
        state = _advance(model, plan, params, rows, key, state, min(size - P + 1, T))
    return replicate(state.tokens), (forced_BK, replicate(state.log_probs)) if plan.log_probs else None


@functools.partial(jax.jit, static_argnums=(0, 1))
def begin(
    model: Any, plan: DecodePlan, params: Any, rows: Rows, key: jax.Array
) -> tuple[DecodeState, jax.Array | None]:
    """(state after the first token, with a cache of the first of `cache_lengths`; forced log-probabilities (B, K))."""
    state, forced_BK = _begin(model, plan, params, rows, key)
    return _readable(state), forced_BK


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=6)
def advance(
    model: Any, plan: DecodePlan, params: Any, rows: Rows, key: jax.Array, state: DecodeState, cache: Any, ended_B, stop
):
    """The state once it has `stop` tokens or every row is done.

    Args:
        state: without its cache. cache: donated. ended_B: rows to mark as done first.
    """
    state = dataclasses.replace(state, done=state.done | ended_B, cache=cache)
    return _readable(_advance(model, plan, params, rows, key, state, stop))


larger = jax.jit(grow, static_argnums=1)


def _begin(model, plan, params, rows, key) -> tuple[DecodeState, jax.Array | None]:
    (B, P), T = rows.tokens.shape, plan.max_new_tokens
    cache = model.new_cache(params, B, cache_lengths(P, P + T)[0])
    logits_BTV, cache = model.prefill(params, rows, cache, 1 + plan.forced if plan.log_probs else 1)
    state = DecodeState(
        step=jnp.int32(0),
        tokens=jnp.full((B, T), model.eos_id, jnp.int32),
        log_probs=jnp.zeros((B, T)) if plan.log_probs else None,
        done=jnp.zeros(B, bool),
        seen=prompt_seen(rows, plan.sampling.repetition_penalty, logits_BTV.shape[-1]),
        cache=cache,
    )
    forced_BK = None
    if plan.log_probs:
        forced_BK = replicate(log_probs(model.mask_padded_ids(logits_BTV[:, :-1]), rows.tokens[:, P - plan.forced :]))
    return _choose(model, plan, key, state, logits_BTV), forced_BK


def _advance(model, plan, params, rows, key, state, stop) -> DecodeState:
    count_B = rows.count_B

    def body(state: DecodeState) -> DecodeState:
        last_B1 = jax.lax.dynamic_slice_in_dim(state.tokens, state.step - 1, 1, axis=1)
        logits_BTV, cache = model.step(
            params, last_B1, (count_B + state.step - 1)[:, None], state.cache, rows.adapter_ids
        )
        return _choose(model, plan, key, dataclasses.replace(state, cache=cache), logits_BTV)

    return jax.lax.while_loop(lambda s: (s.step < stop) & ~s.done.all(), body, state)


def _choose(model, plan, key, state: DecodeState, logits_BTV) -> DecodeState:
    """The state with one more token, chosen from the logits at the last position."""
    step, logits_BV = state.step, model.mask_padded_ids(logits_BTV[:, -1])
    scores_BV = process(logits_BV, plan.sampling, model.end_ids, step, state.seen)
    token_B = sample(scores_BV, jax.random.fold_in(key, step), plan.sampling)
    token_B1 = jnp.where(state.done, model.eos_id, token_B)[:, None]
    write = lambda x_BT, new_B1: jax.lax.dynamic_update_slice(x_BT, new_B1, (0, step))
    log_probs_BT, seen_BV = state.log_probs, state.seen
    return DecodeState(
        step=step + 1,
        tokens=write(state.tokens, token_B1),
        log_probs=None if log_probs_BT is None else write(log_probs_BT, log_probs(logits_BV[:, None], token_B1)),
        done=state.done | is_end(token_B1[:, 0], model.end_ids),
        seen=None if seen_BV is None else seen_BV.at[jnp.arange(len(seen_BV)), token_B1[:, 0]].set(True),
        cache=state.cache,
    )


def log_probs(logits_BTV: jax.Array, tokens_BT: Array) -> jax.Array:
    """(B, T): the log-probability of each token."""
    chosen_BT = jnp.take_along_axis(logits_BTV, tokens_BT[..., None], axis=-1)[..., 0]
    return chosen_BT - jax.nn.logsumexp(logits_BTV, axis=-1)


def prompt_seen(rows: Rows, repetition_penalty: float, vocab: int) -> jax.Array | None:
    """(B, V): whether each token occurs in the prompt; None without a repetition penalty."""
    return None if repetition_penalty == 1 else seen_in(rows.tokens, rows.segments != 0, vocab)


def _readable(state: DecodeState) -> DecodeState:
    """The state with the arrays that the host reads replicated, so that every process has them."""
    return dataclasses.replace(
        state,
        step=replicate(state.step),
        tokens=replicate(state.tokens),
        log_probs=replicate(state.log_probs),
        done=replicate(state.done),
    )


def replicate(x: PyTree) -> PyTree:
    """x replicated on every device, and so readable in every process."""
    several = jax.sharding.get_abstract_mesh().size > 1
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if several else x
