"""Attention maps of a trained run on a text."""

from typing import Any

import jax
import numpy as np

from jaxnlp.data.text.sentinels import with_sentinels
from jaxnlp.data.token_display import token_labels
from jaxnlp.errors import UserError
from jaxnlp.figures.attention import WEIGHTS, Map, collect
from jaxnlp.sharding.functional import make_capture
from jaxnlp.training.fill_mask import encoder_row
from jaxnlp.training.load import Loaded


def attention_maps(run: Loaded, text: str, target: str | None = None) -> list[Map]:
    """The weights of every attention layer of the run's model for a text.

    A decoder reads the separator and the text, as in training. An encoder reads [CLS] text [SEP]. The encoder of an
    encoder-decoder reads the text and the separator, and its decoder reads its start token (by default the separator)
    and `target`; both texts may name sentinels. For a fine-tuned model, the maps are those of its body.

    Args:
        target: the decoder's text, or the second text of an encoder's pair.

    Raises:
        UserError: a model without attention, a text that is too long, or a target that is missing or not supported.
    """
    model, params, tokenizer = run.saved.experiment.model, run.params, run.saved.tokenizer
    if model.body is not model:
        model, params = model.body, params["trunk"]
    if model.attention is None:
        raise _without_attention(model)
    start = run.saved.experiment.data.task.decoder_start_token  # what a decoder began with in training
    separator, begin = tokenizer.separator, tokenizer.separator if start is None else tokenizer.special(start)
    if model.kind == "encoder-decoder":
        tokenizer = with_sentinels(tokenizer)
    encode = lambda text: tokenizer.encode_batch([text])[0]
    given: dict[str, Any] = {}
    if model.kind == "encoder-decoder":
        if target is None:
            raise UserError("--target: not given; expected the text that the decoder of this model reads")
        rows = {"inputs": [*encode(text), separator], "tokens": [begin, *encode(target)]}
    elif model.can_generate:
        if target is not None:
            raise UserError("--target: the run's model is a decoder alone; give the whole text as --text")
        rows = {"tokens": [begin, *encode(text)]}
    else:
        row = encoder_row(run, text, target)
        rows = {"tokens": row.tokens}
        if model.num_types > 1:
            given["types"] = row.types[None]
    limit = model.length_limit
    for name, ids in rows.items():
        if limit is not None and len(ids) > limit:
            flag = "--target" if name == "tokens" and "inputs" in rows else "--text"
            raise UserError(f"{flag}: has {len(ids)} tokens and the model {limit} positions; shorten it")
    labels = {name: token_labels(tokenizer, ids) for name, ids in rows.items()}
    arguments = [np.asarray([ids], np.int32) for ids in rows.values()]
    found = collect(weights_of(run, model, params, arguments, given))
    in_order = sorted(found, key=lambda kind: not kind.startswith("encoder"))
    return [_labelled(kind, *found[kind], labels) for kind in in_order]


def weights_of(run: Loaded, model: Any, params: Any, arguments: list[np.ndarray], given: Any) -> dict[str, np.ndarray]:
    """The attention weights of one call of the model, by path. Raises UserError if there are none."""
    capture, tuning = make_capture(model.build()), run.program.tuning
    if tuning is not None:
        if tuning.method.front:
            name = type(tuning.method).__name__
            raise UserError(f"--workdir: the run's {name}() is read before the text, and has no words to label; no map")
        capture = tuning.apply(capture, () if run.saved.experiment.model is model else ("trunk",))

    def weights(params: Any) -> Any:
        seen = capture(params, *arguments, **given)[1]
        return {path: x for path, x in seen.items() if path.split("/")[-1] == WEIGHTS}

    with run.program.context(any_length=True, batch=None):
        found = jax.tree.map(np.asarray, jax.jit(weights)(params))
    if not found:
        raise _without_attention(model)
    return found


def _without_attention(model: Any) -> UserError:
    return UserError(f"--workdir: the run's model, {type(model).__name__}, has no attention to look at")


def _labelled(kind: str, layers: tuple[int, ...], weights_LHTS: np.ndarray, labels: dict[str, list[str]]) -> Map:
    """A map with its tokens' labels. Inputs label an encoder's queries and keys, and the keys of cross-attention."""
    inputs, tokens = labels.get("inputs", labels["tokens"]), labels["tokens"]
    queries = inputs if kind.startswith("encoder") else tokens
    keys = inputs if kind.startswith("encoder") or "cross" in kind else tokens
    return Map(kind, layers, tuple(range(weights_LHTS.shape[1])), weights_LHTS, queries, keys)
