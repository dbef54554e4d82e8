"""Attention maps of a model on a text, and the heads that follow a simple pattern.

Shape legend: L layers, H heads, T query length, S key length.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxnlp.data.text.sentinels import with_sentinels
from jaxnlp.data.token_display import token_labels
from jaxnlp.errors import UserError
from jaxnlp.inference.bound_model import BoundModel
from jaxnlp.inference.fill_mask import encoder_row
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.sharding.functional import make_capture

WEIGHTS = "attention_weights"
LAYER = re.compile(r"^(?:block_(\d+)|blocks)$")


@dataclasses.dataclass(frozen=True)
class AttentionMap:
    """The weights of one kind of attention.

    name: as "attention" or "decoder/cross_attention".
    layers, heads: numbers, or other labels for the rows and columns of panels.
    weights_LHTS: attention weights; they sum to 1 over S.
    queries, keys: labels of the T queries and S keys.
    """

    name: str
    layers: tuple[int | str, ...]
    heads: tuple[int | str, ...]
    weights_LHTS: np.ndarray
    queries: Sequence[str]
    keys: Sequence[str]

    def habits(self) -> list[tuple[str, int | str, int | str, float]]:
        """For each simple pattern, the head that follows it most; see `habits`."""
        return habits(self)


def attention_maps(model: BoundModel, params: Any, text: str, target: str | None = None) -> list[AttentionMap]:
    """The weights of every attention layer of the model for a text.

    A decoder reads its start tokens and the text, as in training. An encoder reads [CLS] text [SEP]. The encoder of an
    encoder-decoder reads the text and its end tokens, and its decoder reads its start tokens and `target`; both texts
    may name sentinels. For a fine-tuned model, the maps are those of its body.

    Args:
        target: the decoder's text, or the second text of an encoder's pair.

    Raises:
        UserError: a model without attention, a text that is too long, or a target that is missing or not supported.
    """
    config, tokenizer = model.config.body, model.tokenizer
    if config is not model.config:
        params = params["trunk"]
    if config.attention is None:
        raise _without_attention(config)
    if config.kind == "encoder-decoder":
        tokenizer = with_sentinels(tokenizer)
    encode = lambda text: tokenizer.encode_batch([text])[0]
    arguments: dict[str, Any] = {}
    if config.kind == "encoder-decoder":
        if target is None:
            raise UserError("target: not given; expected the decoder input")
        rows = {
            "inputs": [*encode(text), *model.source_end_ids],
            "tokens": [*model.start_ids, *encode(target)],
        }
    elif config.can_generate:
        if target is not None:
            raise UserError("target: not supported for a decoder-only model; expected the full text in text")
        rows = {"tokens": [*model.start_ids, *encode(text)]}
    else:
        row = encoder_row(model, text, target)
        rows = {"tokens": row.tokens}
        if config.num_types > 1:
            arguments["token_type_ids"] = row.token_type_ids[None]
    limit = config.length_limit
    arguments_of = {"inputs": "text", "tokens": "target" if "inputs" in rows else "text"}
    for name, ids in rows.items():
        if len(ids) == 0:
            raise UserError(
                f"{arguments_of[name]}: is empty; the model has no start token, so at least one token is needed"
            )
        if limit is not None and len(ids) > limit:
            raise UserError(
                f"{arguments_of[name]}: has {len(ids)} tokens; model.max_length is {limit}; shorten the text"
            )
    labels = {name: token_labels(tokenizer, ids) for name, ids in rows.items()}
    inputs = [np.asarray([ids], np.int32) for ids in rows.values()]
    weights = collect(_weights(model, params, inputs, arguments))
    in_order = sorted(weights, key=lambda kind: not kind.startswith("encoder"))
    return [_labelled(kind, *weights[kind], labels) for kind in in_order]


def _weights(model: BoundModel, params: Any, inputs: list[np.ndarray], arguments: Any) -> dict[str, np.ndarray]:
    """The attention weights of one call of the model's body, by path. Raises UserError if there are none."""
    config, tuning = model.config.body, model.tuning
    capture = make_capture(config.build())
    if tuning is not None:
        if tuning.method.num_virtual_tokens:
            name = type(tuning.method).__name__
            raise UserError(f"attention maps are not supported with {name}(): its virtual tokens have no text labels")
        capture = tuning.apply(capture, () if config is model.config else ("trunk",))

    def weights(params: Any) -> Any:
        activations = capture(params, *inputs, **arguments)[1]
        return {path: x for path, x in activations.items() if path.split("/")[-1] == WEIGHTS}

    with model.context(batch=None):
        by_path = jax.tree.map(np.asarray, jax.jit(weights)(params))
    if not by_path:
        raise _without_attention(config)
    return by_path


def _without_attention(config: ModelConfig) -> UserError:
    return UserError(f"{type(config).__name__}: the model has no attention layers")


def _labelled(
    kind: str, layers: tuple[int, ...], weights_LHTS: np.ndarray, labels: dict[str, list[str]]
) -> AttentionMap:
    """A map with its tokens' labels. Inputs label an encoder's queries and keys, and the keys of cross-attention."""
    inputs, tokens = labels.get("inputs", labels["tokens"]), labels["tokens"]
    queries = inputs if kind.startswith("encoder") else tokens
    keys = inputs if kind.startswith("encoder") or "cross" in kind else tokens
    return AttentionMap(kind, layers, tuple(range(weights_LHTS.shape[1])), weights_LHTS, queries, keys)


def collect(activations: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], np.ndarray]]:
    """Attention weights by kind of attention, from the activations that `make_capture` recorded.

    "block_3/attention/attention_weights" (1, H, T, S) is layer 3 of the kind "attention". For scanned layers,
    "blocks/attention/attention_weights" (L, 1, H, T, S) holds all of them.

    Args:
        activations: recorded activations by path, for a batch of one text.

    Returns:
        {kind: (layer numbers, weights_LHTS in float32)}.
    """
    by_part: dict[str, dict[int, np.ndarray]] = {}
    for path, weights in activations.items():
        *parts, last = path.split("/")
        if last != WEIGHTS:
            continue
        layers = by_part.setdefault("/".join(part for part in parts if not LAYER.match(part)), {})
        if weights.ndim == 5:
            layers |= {i: np.asarray(w[0], np.float32) for i, w in enumerate(weights)}
        else:
            numbers = [int(m[1]) for part in parts if (m := LAYER.match(part)) and m[1]]
            layers[numbers[-1] if numbers else 0] = np.asarray(weights[0], np.float32)
    return {
        kind: (tuple(sorted(layers)), np.stack([layers[i] for i in sorted(layers)])) for kind, layers in by_part.items()
    }


def select(
    attention_map: AttentionMap, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> AttentionMap:
    """The given layers and heads, in that order; None selects all. Raises UserError for one that does not exist."""
    rows = _places("--layers", layers, attention_map.layers)
    columns = _places("--heads", heads, attention_map.heads)
    return dataclasses.replace(
        attention_map,
        layers=tuple(attention_map.layers[i] for i in rows),
        heads=tuple(attention_map.heads[i] for i in columns),
        weights_LHTS=attention_map.weights_LHTS[rows][:, columns],
    )


def _places(flag: str, selected: Sequence[int] | None, numbers: tuple[int | str, ...]) -> list[int]:
    for number in selected or ():
        if number not in numbers:
            raise UserError(f"{flag}={number}: the model has {numbers[0]} to {numbers[-1]}")
    return [numbers.index(number) for number in (numbers if selected is None else selected)]


FEWEST = 3  # minimum number of queries of a pattern
PATTERNS = {
    "its own token": lambda t, s, queries, keys: s == t,
    "the token before": lambda t, s, queries, keys: s == t - 1,
    "the token after": lambda t, s, queries, keys: s == t + 1,
    "the first token": lambda t, s, queries, keys: s == 0,
    "the token after an earlier copy": lambda t, s, queries, keys: 0 < s <= t and keys[s - 1] == queries[t],
}


def habits(attention: AttentionMap) -> list[tuple[str, int | str, int | str, float]]:
    """For each pattern in `PATTERNS`, the head that follows it most: (pattern, layer, head, mean weight on it).

    The mean is over queries after the first that have a key of the pattern and can attend to more than one key. A
    pattern is left out if there are fewer than three such queries, or if no head puts weight on it. Only "the first
    token" is used for cross-attention. The last pattern is that of induction heads (Olsson et al. 2022,
    arXiv:2209.11895).
    """
    is_self_attention = list(attention.queries) == list(attention.keys)
    choice_T = (attention.weights_LHTS > 0).sum(-1).max((0, 1)) > 1
    rows = []
    for name, matches in PATTERNS.items():
        if not is_self_attention and name != "the first token":
            continue
        at_TS = np.asarray(
            [
                [matches(t, s, attention.queries, attention.keys) for s in range(len(attention.keys))]
                for t in range(len(attention.queries))
            ]
        )
        rows_T = at_TS.any(-1) & choice_T & (np.arange(len(attention.queries)) > 0)
        mean_LH = (
            (attention.weights_LHTS * at_TS).sum(-1)[..., rows_T].mean(-1)
            if rows_T.sum() >= FEWEST
            else np.zeros((1, 1))
        )
        if mean_LH.any():
            layer, head = np.unravel_index(mean_LH.argmax(), mean_LH.shape)
            rows.append((name, attention.layers[layer], attention.heads[head], float(mean_LH[layer, head])))
    return rows
