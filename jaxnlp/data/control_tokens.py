"""Special tokens of a `tokenizers` vocabulary: which names are special, and how text is kept from becoming them.

The library looks up text in the model's vocabulary, which may also hold the names of special tokens: a Unigram file
that was converted from sentencepiece has `</s>`, `<pad>` and `<extra_id_0>` with score 0, above every piece of text.
sentencepiece itself never matches a control token in a text.
"""

import json
import re
import secrets
from collections.abc import Callable
from typing import Any

_CONTROL = re.compile(r"<(?!0x[0-9A-F]{2}>)[^<>\s]+>")  # not the bytes of byte_fallback


def with_control_tokens(model: Any) -> Any:
    """The tokenizer of the library; a copy with more special tokens if a Unigram vocabulary has others.

    sentencepiece gives score 0 to control tokens, as `</s>`, and to the user's symbols, which files list as added
    tokens. The scores of pieces of text are negative.
    """
    import tokenizers

    if not isinstance(model.model, tokenizers.models.Unigram):  # pyright: ignore[reportAttributeAccessIssue]
        return model
    fields = json.loads(model.to_str())
    added = {token["content"] for token in fields["added_tokens"]}
    names = [name for name, score in fields["model"]["vocab"] if score == 0 and _CONTROL.fullmatch(name)]
    missing = [name for name in names if name not in added]
    if not missing:
        return model
    copy = tokenizers.Tokenizer.from_str(model.to_str())
    copy.add_special_tokens(missing)
    return copy


def unreachable(fields: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json with the same ids, in which no text becomes a special token; `fields` if none can.

    The special tokens that the model's vocabulary holds get names that no text contains, so the tokenizer is for
    encoding only. An unknown character still becomes the unknown token.
    """
    model = fields["model"]
    names = {token["content"] for token in fields["added_tokens"] if token["special"] and len(token["content"]) > 1}
    names &= {entry[0] for entry in model["vocab"]} if model["type"] == "Unigram" else set(model["vocab"])
    merges = _merges(model)
    if model["type"] == "BPE" and not model.get("ignore_merges"):  # an entry of the vocabulary alone is not enough
        names &= set(merges.values())
    if not names:
        return fields
    secret = secrets.token_hex(16)  # so that nobody can write a text that contains it
    new_name = lambda name: f"{secret}{name}" if name in names else name
    model = {**model, "vocab": _renamed(model["vocab"], new_name)}
    if model.get("unk_token"):
        model["unk_token"] = new_name(model["unk_token"])
    if merges:
        model["merges"] = [list(pair) for pair, result in merges.items() if names.isdisjoint({*pair, result})]
    added = [{**token, "content": new_name(token["content"])} for token in fields["added_tokens"]]
    return {**fields, "model": model, "added_tokens": added}


def _merges(model: dict[str, Any]) -> dict[tuple[str, str], str]:
    """The merges of a BPE model, as {pair: result}; older files have pairs as "a b"."""
    prefix, by_pair = model.get("continuing_subword_prefix") or "", {}
    for pair in model.get("merges", ()):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        by_pair[left, right] = left + right.removeprefix(prefix)
    return by_pair


def _renamed(vocab: Any, new_name: Callable[[str], str]) -> Any:
    if isinstance(vocab, dict):
        return {new_name(name): i for name, i in vocab.items()}
    return [[new_name(name), score] for name, score in vocab]
