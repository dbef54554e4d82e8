"""Text generation for decoder-only models and encoder-decoders.

A jitted loop (`inference/loop.py`) over a static key-value cache. Prompts of different lengths are padded on the left,
so that every row writes its next token at the same index. Segment 0 masks the padding in attention, and positions
count real tokens only. The cache starts small and doubles as the text grows, because each step reads all of it.

Shape legend: B batch, P prompt length, R rows or beams, T new tokens, V vocabulary.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import FieldError
from jaxnlp.inference import loop
from jaxnlp.inference.cache import cache_lengths
from jaxnlp.inference.processors import NEVER
from jaxnlp.inference.rows import Ids, Rows, decoder_length, make_rows
from jaxnlp.inference.sampling import Sampling
from jaxnlp.trees import Params, PyTree

CHUNK = 8  # steps between two calls of `on_tokens`
OnTokens = Callable[[int, list[int]], Any]


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generated text.

    ids: tokens, forced ones first, without the end-of-text token that ends the text.
    log_probs: the model's log-probability of each token given all preceding ones, before temperature, filters and
        penalties.
    end_log_prob: log-probability of the end-of-text token; None if the text did not end with it.
    finish: "end" (the model generated the end-of-text token), "stop" (`on_tokens` or a stop string) or "length"
        (max_new_tokens).
    text: decoded text, up to a stop string; None without a tokenizer (`inference/text.py` decodes).
    """

    ids: list[int]
    log_probs: list[float]
    end_log_prob: float | None
    finish: str
    text: str | None = None

    @property
    def score(self) -> float:
        """The log-probability of the text, including its end."""
        return sum(self.log_probs) + (self.end_log_prob or 0.0)


@dataclasses.dataclass(frozen=True)
class Generator:
    """A model ready to generate.

    apply: (params, tokens, segment_ids=, positions=, cache=, logits_to_keep=) -> (logits, cache); for an
        encoder-decoder (params, inputs, tokens, input_segments=, ...), with inputs None once the cache holds the
        encoder's output.
    init_cache: (batch, length) -> an empty cache.
    length_limit: the longest sequence the model can read; None: no limit.
    eos_id: the end-of-text token, and the padding after a text.
    vocab_size: ids at or above it (a padded vocabulary) are never generated.
    context: (batch size) -> the context manager around the model, for its mesh and rules.
    prepare_params: optional transform of the parameters before decoding, e.g. the output-major layout on a CPU.
    decoder_start_ids: tokens at the start of every decoder input, as in training; None is `eos_id`, () is none.
    encoder_eos_ids: tokens at the end of every encoder input; None is `eos_id`, () is none.
    eos_ids: all tokens that end a text; None is `eos_id`, () is none.
    bos_ids: tokens at the start of an empty prompt, if there are no `decoder_start_ids`.
    encoder_decoder: whether prompts are encoder inputs; the decoder then starts with `decoder_start_ids` and the
        forced prefix.
    num_virtual_tokens: soft-prompt positions at the front of the cache.
    prefill_prefix: (parameters, empty cache) -> the cache with the keys and values of the soft-prompt positions.
    length_multiple: prompts and forced prefixes are padded to a multiple of it. Each length is compiled anew, so for
        many batches a larger multiple needs fewer programs.
    """

    apply: Callable
    init_cache: Callable[[int, int], PyTree]
    length_limit: int | None
    eos_id: int
    vocab_size: int
    context: Callable[[int], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    prepare_params: Callable[[Params], Params] = lambda params: params
    decoder_start_ids: tuple[int, ...] | None = None
    encoder_eos_ids: tuple[int, ...] | None = None
    eos_ids: tuple[int, ...] | None = None
    bos_ids: tuple[int, ...] = ()
    encoder_decoder: bool = False
    num_virtual_tokens: int = 0
    prefill_prefix: Callable[[Params, PyTree], PyTree] | None = None
    length_multiple: int = 1

    def __call__(
        self,
        params: Any,
        prompts: Ids,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        seed: int = 0,
        *,
        forced_prefix: Ids | None = None,
        adapter_ids: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """The ids of `generate`, with the same arguments; log-probabilities are not computed."""
        forced = forced_prefix or [[]] * len(prompts)
        tokens_BT, _ = self._all(params, prompts, max_new_tokens, sampling, seed, forced, adapter_ids, log_probs=False)
        return [[*f, *self.until_eos(row)] for f, row in zip(forced, tokens_BT.tolist(), strict=True)]

    def generate(
        self,
        params: Any,
        prompts: Ids,
        max_new_tokens: int,
        sampling: Sampling = Sampling(),
        seed: int = 0,
        *,
        forced_prefix: Ids | None = None,
        on_tokens: OnTokens | None = None,
        chunk: int = CHUNK,
        adapter_ids: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Continues each prompt, up to the end-of-text token or `max_new_tokens`.

        Args:
            prompts: ids, without the start tokens (`start_ids`); for an encoder-decoder, the sources.
            forced_prefix: for each prompt, ids that its new text must begin with. They are included in the result and
                not counted in max_new_tokens.
            on_tokens: called as on_tokens(row, new ids) while tokens are generated, forced ones first. If it returns
                True, the row ends. The loop then runs in chunks of `chunk` steps; the results are the same.
            adapter_ids: for each prompt, the index of its adapter, if `apply` is a multi-adapter model
                (`peft/multi_adapter.py`).

        Raises:
            UserError: no prompts, max_new_tokens below 1, or more positions than the model has.
            FieldError: chunk below 1.
        """
        forced = forced_prefix or [[]] * len(prompts)
        args = (params, prompts, max_new_tokens, sampling, seed, forced, adapter_ids)
        if on_tokens is None:
            tokens_BT, log_probs = self._all(*args, log_probs=True)
            ends: list[int | None] = [None] * len(prompts)
        else:
            tokens_BT, log_probs, ends = self._in_chunks(*args, on_tokens, chunk)
        generations = []
        for i, row in enumerate(tokens_BT.tolist()):
            ids = self.until_eos(row) if ends[i] is None else row[: ends[i]]
            ended = ends[i] is None and len(ids) < len(row)
            forced_K, new_T = (x[i].tolist() for x in log_probs)
            row_log_probs = [*forced_K[len(forced_K) - len(forced[i]) :], *new_T[: len(ids)]]
            end = new_T[len(ids)] if ended else None
            finish = "end" if ended else "length" if ends[i] is None else "stop"
            generations.append(Generation([*forced[i], *ids], row_log_probs, end, finish))
        return generations

    def _all(self, params, prompts, max_new_tokens, sampling, seed, forced, adapter_ids, *, log_probs: bool):
        """Runs the loop in one call: (tokens_BT, log-probabilities of forced (B, K) and new tokens (B, T), or None)."""
        rows = self.rows(prompts, max_new_tokens, forced, adapter_ids)
        plan = loop.DecodePlan(max_new_tokens, sampling, log_probs, self.padded_prefix(rows, forced))
        with self.context(len(prompts)):
            outputs = loop.run(self, plan, self.prepare_params(params), rows, jax.random.key(seed))
        return jax.tree.map(np.asarray, outputs)

    def _in_chunks(self, params, prompts, max_new_tokens, sampling, seed, forced, adapter_ids, on_tokens, chunk):
        """As `_all`, calling `on_tokens` after each chunk.

        Also returns, for each row, the number of new tokens at which `on_tokens` ended it, or None."""
        if chunk < 1:
            raise FieldError("chunk", chunk, "expected a positive number of steps")
        rows = self.rows(prompts, max_new_tokens, forced, adapter_ids)
        plan = loop.DecodePlan(max_new_tokens, sampling, True, self.padded_prefix(rows, forced))
        B, P, T = len(prompts), rows.tokens.shape[1], max_new_tokens
        size, *later_sizes = cache_lengths(P, P + T)
        num_reported = [0] * B
        ends = [0 if prefix and on_tokens(i, list(prefix)) else None for i, prefix in enumerate(forced)]
        with self.context(B):
            decode_params, key = self.prepare_params(params), jax.random.key(seed)
            state, forced_BK = loop.begin(self, plan, decode_params, rows, key)
            while True:
                step, tokens_BT, done_B = (np.asarray(x) for x in (state.step, state.tokens, state.done))
                for i, row in enumerate(tokens_BT[:, :step].tolist()):
                    new_ids = self.until_eos(row)[num_reported[i] :] if ends[i] is None else []
                    num_reported[i] += len(new_ids)
                    if new_ids and on_tokens(i, new_ids):
                        ends[i] = num_reported[i]
                ended_B = np.asarray([end is not None for end in ends])
                if step == T or (done_B | ended_B).all():
                    break
                cache = state.cache
                if step == size - P + 1:
                    size, *later_sizes = later_sizes
                    cache = loop.larger(cache, size + self.num_virtual_tokens)
                state, stop = dataclasses.replace(state, cache=None), np.int32(min(step + chunk, size - P + 1, T))
                state = loop.advance(self, plan, decode_params, rows, key, state, cache, ended_B, stop)
        return tokens_BT, (np.asarray(forced_BK), np.asarray(state.log_probs)), ends

    def rows(
        self,
        prompts: Ids,
        max_new_tokens: int,
        forced_prefix: Ids | None = None,
        adapter_ids: Sequence[int] | None = None,
    ) -> Rows:
        """Prompts as arrays (`inference/rows.py`).

        Raises:
            UserError: no prompts, max_new_tokens below 1, or more positions than the model has.
        """
        return make_rows(self, prompts, max_new_tokens, forced_prefix, adapter_ids)

    def padded_prefix(self, rows: Rows, forced: Ids) -> int:
        """The length of the longest forced prefix, padded as `length_multiple` says."""
        longest, multiple = max(map(len, forced)), self.length_multiple
        return min(-(-longest // multiple) * multiple, rows.tokens.shape[1] - 1)

    def fit_max_new_tokens(self, prompts: Ids, num_tokens: int, forced_prefix: Ids | None = None) -> int:
        """`num_tokens`, reduced to the number of new tokens that fit after the longest prompt; at least 1."""
        if self.length_limit is None:
            return num_tokens
        forced = forced_prefix or [[]] * len(prompts)
        longest = max(
            (decoder_length(self, p, f) for p, f in zip(prompts, forced, strict=True)), default=len(self.start_of(()))
        )
        return max(1, min(num_tokens, self.length_limit - longest))

    @property
    def start_ids(self) -> tuple[int, ...]:
        """Tokens at the start of every decoder input: `decoder_start_ids` or their default."""
        return (self.eos_id,) if self.decoder_start_ids is None else self.decoder_start_ids

    @property
    def source_end_ids(self) -> tuple[int, ...]:
        """Tokens at the end of every encoder input: `encoder_eos_ids` or their default; () for a decoder-only model."""
        if not self.encoder_decoder:
            return ()
        return (self.eos_id,) if self.encoder_eos_ids is None else self.encoder_eos_ids

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All tokens that end a text: `eos_ids` or their default."""
        return (self.eos_id,) if self.eos_ids is None else self.eos_ids

    def start_of(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Tokens at the start of the decoder's input for a prompt: `start_ids`, or `bos_ids` if both are empty."""
        empty = not self.encoder_decoder and not prompt and not self.start_ids
        return self.bos_ids if empty else self.start_ids

    def until_eos(self, row: list[int]) -> list[int]:
        """A row of new tokens, up to the first end-of-text token."""
        return list(itertools.takewhile(lambda i: i not in self.end_ids, row))

    def new_cache(self, decode_params: Any, batch: int, length: int) -> Any:
        """A cache for `length` positions of text, empty but for the soft prompt."""
        cache = self.init_cache(batch, length + self.num_virtual_tokens)
        return cache if self.prefill_prefix is None else self.prefill_prefix(decode_params, cache)

    def prefill(self, decode_params: Any, rows: Rows, cache: Any, logits_to_keep: int) -> tuple[jax.Array, Any]:
        """(logits at the last `logits_to_keep` positions of `rows.tokens`, the cache filled with `rows.tokens`)."""
        positions_BP = rows.positions_BP + self.num_virtual_tokens
        kwargs = {"segment_ids": rows.segments, "positions": positions_BP, "cache": cache}
        if rows.adapter_ids is not None:
            kwargs["adapter_ids"] = rows.adapter_ids
        if not self.encoder_decoder:
            return self.apply(decode_params, rows.tokens, **kwargs, logits_to_keep=logits_to_keep)
        kwargs["input_segments"] = rows.input_segments
        return self.apply(decode_params, rows.inputs, rows.tokens, **kwargs, logits_to_keep=logits_to_keep)

    def step(
        self,
        decode_params: Any,
        last_R1: jax.Array,
        positions_R1: jax.Array,
        cache: Any,
        adapter_ids_R: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """(logits (R, 1, V) of the token after `last_R1`, the cache extended by `last_R1`)."""
        positions_R1 = positions_R1 + self.num_virtual_tokens
        kwargs = {"segment_ids": jnp.ones_like(last_R1), "positions": positions_R1, "cache": cache}
        if adapter_ids_R is not None:
            kwargs["adapter_ids"] = adapter_ids_R
        tokens = (None, last_R1) if self.encoder_decoder else (last_R1,)
        return self.apply(decode_params, *tokens, **kwargs)

    def mask_padded_ids(self, logits_V: jax.Array) -> jax.Array:
        """Logits (..., V), with -inf at the padding ids of the vocabulary."""
        if logits_V.shape[-1] == self.vocab_size:
            return logits_V
        return jnp.where(jnp.arange(logits_V.shape[-1]) < self.vocab_size, logits_V, NEVER)
