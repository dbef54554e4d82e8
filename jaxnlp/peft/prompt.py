"""Soft prompts: learned vectors inserted before (or within) the frozen token embeddings of a text.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) learns the vectors directly. P-tuning (Liu et al. 2021,
arXiv:2103.10385) learns a small encoder that produces them, and may place them inside a template. Prefixes at every
layer are in `peft/prefix.py`. In an encoder-decoder the vectors precede the encoder's inputs, as in Lester et al.; the
decoder attends to their positions like to those of the text.

Shape legend: P prompt length, B batch, T length, D model, H encoder units.
"""

import dataclasses
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.errors import FieldError, UserError
from jaxnlp.nn import trace_context
from jaxnlp.nn.interceptors import ModuleCall
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.nn.trace_context import PromptInsertion
from jaxnlp.peft.method import AdapterParam, PEFTMethod
from jaxnlp.peft.targets import TABLE, Target, choose
from jaxnlp.trees import Path

PROMPT = "prompt"
INITS = ("random", "vocabulary", "ids")
ENCODERS = ("mlp", "lstm")


@dataclasses.dataclass(kw_only=True)
class Prompt(PEFTMethod):
    """Prompt tuning: `length` learned vectors prepended to the input embeddings (of the encoder, if there is one).

    length: P.
    targets: pattern of the token embedding table. It looks up a token at every position; its outputs at the prompt
        positions are replaced.
    init: "random" (normal, with the table's standard deviation), "vocabulary" (embeddings of the tokens of `text`, or
        of randomly drawn tokens) or "ids".
    text: description of the task, e.g. "Which package is this from?". A run tokenizes it into `ids`.
    ids: tokens whose embeddings initialise the prompt; repeated if fewer than `length`.
    placeholder: id of the token that the vectors replace, in order, inside the text. None: the vectors are prepended.
        A run whose `data.tasks.layout.Template` has prompt positions sets this field.
    """

    length: int = 20
    targets: tuple[str, ...] = ("embed",)
    init: str = "vocabulary"
    text: str | None = None
    ids: tuple[int, ...] = ()
    placeholder: int | None = None

    def check(self) -> None:
        super().check()
        if self.length < 1:
            raise FieldError("length", self.length, "expected a positive number of vectors")
        if self.init not in INITS:
            raise FieldError("init", self.init, f"expected one of {', '.join(INITS)}")
        if self.text is not None:
            if not self.text or self.init != "vocabulary":
                raise FieldError("text", self.text, "expected a text with init='vocabulary', or None")
        elif (self.init == "ids") != bool(self.ids):
            raise FieldError("ids", self.ids, "expected token ids with init='ids', and () otherwise")
        elif len(self.ids) > self.length:
            raise FieldError(
                "length", self.length, f"ids has {len(self.ids)} tokens; use length={len(self.ids)}, or fewer ids"
            )

    def resolved(self, tokenizer, placeholder):
        ids = self.ids
        if self.text is not None:
            ids = tuple(map(int, tokenizer.encode_batch([self.text])[0]))
            if not 0 < len(ids) <= self.length:
                message = f"has {len(ids)} tokens, and peft.length={self.length}"
                message += f"; use peft.length={len(ids)}, or a shorter text" if ids else "; expected a longer text"
                raise FieldError("peft.text", self.text, message)
        return dataclasses.replace(self, ids=ids, placeholder=self.placeholder if placeholder is None else placeholder)

    def check_batch(self, batch):
        if self.placeholder is None:
            return
        tokens, segments = ("inputs", "input_segments") if "inputs" in batch else ("tokens", "segment_ids")
        counts = np.sum(batch[tokens] == self.placeholder, axis=-1)
        wrong = (counts != self.length) & (np.max(batch[segments], axis=-1) > 0)  # padding rows have none
        if wrong.any():
            row, count = int(np.argwhere(wrong)[0][0]), int(counts[wrong][0])
            raise UserError(
                f"peft.placeholder={self.placeholder}: row {row} of a batch has this token {count} times; expected "
                f"peft.length={self.length} of them, one for each vector; insert them with "
                "data.task.layout=Template(...), or use placeholder=None to prepend the vectors"
            )

    @property
    def num_virtual_tokens(self) -> int:
        return self.length if self.placeholder is None else 0

    def num_cached_virtual_tokens(self, encoder_decoder: bool) -> int:
        # An encoder-decoder's prompt is in front of the encoder's input.
        return 0 if encoder_decoder else self.num_virtual_tokens

    @property
    def single_text_only(self) -> bool:
        """Whether the prompt would reach only one of several texts packed in a row."""
        return self.placeholder is None

    def choose(self, targets: list[Target]) -> list[Target]:
        serves = lambda t: t.is_table and len(t.inputs or ()) == 2
        chosen = choose(targets, self.targets, serves, "an embedding table", "peft.targets")
        if len(chosen) > 1:
            names = ", ".join(t.name for t in chosen)
            raise UserError(f"peft.targets={self.targets}: expected one embedding table, got {names}")
        return chosen

    def leaves(self, target: Target) -> dict[str, AdapterParam]:
        table = target.parameters[TABLE]
        rows, width = table.shape[-2:]
        wrong = [i for i in (*self.ids, self.placeholder or 0) if not 0 <= i < rows]
        if wrong:
            raise FieldError("peft.ids", wrong[0], f"expected ids of the vocabulary, 0 to {rows - 1}")

        def begin(key, weights):
            words = weights[TABLE]
            if self.text is not None and not self.ids:
                raise FieldError(
                    "peft.text", self.text, "not tokenized; call .resolved(tokenizer, None) first, as a run does"
                )
            if self.init == "random":
                return jnp.std(words) * jax.random.normal(key, (self.length, width))
            if self.ids:
                return words[np.resize(self.ids, self.length)]
            return words[jax.random.choice(key, rows, (self.length,), replace=self.length > rows)]

        return {PROMPT: AdapterParam((self.length, width), ("length", table.axes[-1]), begin)}

    def outer(self, targets: list[Target], chosen: list[Target]) -> Path | None:
        return None if self.placeholder is not None else chosen[0].path[:-1]

    def call(self, leaves, target, call: ModuleCall, fn, args, kwargs):
        prompt_PD, (ids_BT, *rest) = leaves[PROMPT], args
        words_BTD = fn(ids_BT, *rest, **kwargs)
        prompt_PD = prompt_PD.astype(words_BTD.dtype)
        if self.placeholder is not None:
            is_placeholder_BT = ids_BT == self.placeholder
            index_BT = jnp.cumsum(is_placeholder_BT, axis=1) - 1
            # NaN if there are more placeholders than vectors.
            vectors_BTD = prompt_PD.at[index_BT].get(mode="fill", fill_value=jnp.nan)
            return jnp.where(is_placeholder_BT[..., None], vectors_BTD, words_BTD)
        insertion = trace_context.current().prompt_insertion
        if insertion is None or (insertion.token_ids is not None and ids_BT is not insertion.token_ids):
            return words_BTD
        insertion.count += 1
        front_BPD = jnp.broadcast_to(prompt_PD, (ids_BT.shape[0], *prompt_PD.shape))
        return jnp.concatenate([front_BPD, words_BTD[:, self.length :]], axis=1)

    def call_outer(self, call: ModuleCall, fn, args, kwargs):
        encoder, (ids_BT, *rest) = takes(call.module, "input_segments"), args
        if ids_BT is None or (not encoder and kwargs.get("cache") is not None and ids_BT.shape[1]):
            return fn(*args, **kwargs)  # the cache already holds the prompt, or the encoder's states of it
        P, T = self.length, ids_BT.shape[1]
        check_room(call, P, T, "peft.length")
        longer_BT = in_front("", ids_BT, P, T)
        is_extended = lambda name: name.startswith("input_") or not encoder
        extended_kwargs = {name: in_front(name, x, P, T) if is_extended(name) else x for name, x in kwargs.items()}
        insertion = PromptInsertion(longer_BT if encoder else None)
        with trace_context.replaced(prompt_insertion=insertion):
            out = fn(longer_BT, *(rest if encoder else [in_front("", x, P, T) for x in rest]), **extended_kwargs)
        if insertion.count != 1:
            raise UserError(
                f"{type(self).__name__}(): {type(call.module).__name__} looks up embeddings {insertion.count} times, "
                "expected once; an encoder-decoder must take `input_segments`, and embed its inputs unchanged"
            )
        if encoder or kwargs.get("cache") is not None:
            return out
        return jax.tree.map(lambda x: x[:, P:] if x.ndim > 2 and x.shape[1] == P + T else x, out)

    def begin_cache(self, run, params, cache):
        if self.placeholder is not None:
            return cache
        return run(params, jnp.zeros((cache["segments"].shape[0], 0), jnp.int32), cache=cache)[1]


@dataclasses.dataclass(kw_only=True)
class PTuning(Prompt):
    """P-tuning: an encoder maps `length` learned inputs to the prompt's vectors; inputs and encoder are trained.

    encoder: "mlp" (three layers) or "lstm" (two bidirectional layers, then two linear ones), as in PEFT.
    hidden_dim: H; None: the model's width. After training, `TunedModel.expanded` keeps only the resulting vectors.
    """

    encoder: str = "mlp"
    hidden_dim: int | None = None
    init: str = "random"

    def check(self) -> None:
        if self.text is not None:
            raise FieldError("text", self.text, "the encoder computes the vectors; use None, or Prompt(text=...)")
        super().check()
        if self.encoder not in ENCODERS:
            raise FieldError("encoder", self.encoder, f"expected one of {', '.join(ENCODERS)}")
        if self.hidden_dim is not None and self.hidden_dim < 1:
            raise FieldError("hidden_dim", self.hidden_dim, "expected a positive number of units, or None")
        if self.init != "random":
            raise FieldError("init", self.init, "the encoder computes the vectors; expected 'random'")

    def shared(self, chosen: list[Target]) -> dict[str, AdapterParam]:
        D = chosen[0].parameters[TABLE].shape[-1]
        H = self.hidden_dim or D
        params = {
            "inputs": AdapterParam(
                (self.length, D), ("length", None), lambda key, weights: jax.random.normal(key, (self.length, D))
            )
        }
        if self.encoder == "mlp":
            sizes = {"dense_0": (D, H), "dense_1": (H, H), "dense_2": (H, D)}
        else:
            sizes = {"dense_0": (2 * H, 2 * H), "dense_1": (2 * H, D)}
            for layer, width in enumerate((D, 2 * H)):
                for way in ("forward", "backward"):
                    name = f"lstm_{layer}_{way}"
                    params |= {f"{name}_inputs": uniform((width, 4 * H), H), f"{name}_hidden": uniform((H, 4 * H), H)}
                    params[f"{name}_bias"] = uniform((4 * H,), H)
        for name, shape in sizes.items():
            params |= {f"{name}_kernel": uniform(shape, shape[0]), f"{name}_bias": uniform(shape[1:], shape[0])}
        return params

    def computed(self, shared, chosen):
        x_PD = shared["inputs"]
        if self.encoder == "lstm":
            for layer in range(2):
                forward_PH, backward_PH = (
                    _lstm(shared, f"lstm_{layer}_{way}", x_PD) for way in ("forward", "backward")
                )
                x_PD = jnp.concatenate([forward_PH, backward_PH], axis=-1)
        count = 3 if self.encoder == "mlp" else 2
        for i in range(count):
            x_PD = x_PD @ shared[f"dense_{i}_kernel"] + shared[f"dense_{i}_bias"]
            x_PD = jax.nn.relu(x_PD) if i < count - 1 else x_PD
        return {chosen[0].path: {PROMPT: x_PD}}


def uniform(shape: tuple[int, ...], fan_in: int) -> AdapterParam:
    """A replicated parameter with torch's initialisation of linear layers and LSTMs: uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    draw = lambda key, weights: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    return AdapterParam(shape, (None,) * len(shape), draw)


def _lstm(shared: dict[str, jax.Array], name: str, x_PD: jax.Array) -> jax.Array:
    """One direction of an LSTM over the prompt, (P, H); gates in the order input, forget, cell, output."""
    inputs, hidden, bias = (shared[f"{name}_{part}"] for part in ("inputs", "hidden", "bias"))

    def step(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x + h @ hidden, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros(hidden.shape[0])
    return jax.lax.scan(step, (zeros, zeros), x_PD @ inputs + bias, reverse=name.endswith("backward"))[1]


def in_front(name: str, x: Any, P: int, T: int) -> Any:
    """An argument (B, T, ...) of the model, extended by P positions in front: (B, P + T, ...).

    Position ids are shifted by P, and so are the positions in `masked_positions`. Segment ids are extended with the
    row's largest id, other arrays (and any array with T = 0) with zeros. Arguments of another shape are returned
    unchanged.
    """
    if name in ("positions", "input_positions", "masked_positions"):
        if x is None or name == "masked_positions":
            return x if x is None else x + P
        front = jnp.broadcast_to(jnp.arange(P, dtype=x.dtype), (x.shape[0], P))
        return jnp.concatenate([front, x + P], axis=1)
    if not isinstance(x, (jax.Array, np.ndarray)) or x.ndim < 2 or x.shape[1] != T:
        return x
    if T == 0:
        return jnp.zeros((x.shape[0], P, *x.shape[2:]), x.dtype)
    segments = name in ("segment_ids", "input_segments")
    front = jnp.max(x, axis=1, keepdims=True) if segments else jnp.zeros_like(x[:, :1])
    return jnp.concatenate([jnp.repeat(front, P, axis=1), x], axis=1)


def check_room(call: ModuleCall, P: int, T: int, field: str) -> None:
    """Raises UserError if a prompt of P and a text of T tokens exceed the length of the model's position table."""
    config = call.fields().get("config")  # a single layer has none
    limit = config.length_limit if isinstance(config, ModelConfig) else None
    if limit is not None and limit < P + T:
        raise UserError(
            f"{field}={P}: with a text of {T} tokens it exceeds model.max_length={limit}; shorten one of them"
        )


def takes(module: Any, name: str) -> bool:
    """Whether the module's `__call__` has an argument `name`.

    The signature is inspected because any Linen module can be tuned, also one without a config that could declare it,
    and because arguments are extended by their names (`in_front`): what counts is that the module has the argument.
    """
    return name in inspect.signature(type(module).__call__).parameters
