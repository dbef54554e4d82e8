"""Sentinels as text: "<extra_id_0>" in a text is encoded as the special token and decoded to the same name."""

import itertools
import re
from collections.abc import Iterable
from typing import Any

from jaxnlp.data.joined_text import encode_between
from jaxnlp.data.tokenizer import Tokenizer

SENTINEL = "<extra_id_{}>"


def sentinels(count: int) -> tuple[str, ...]:
    """Names of the first `count` sentinels, for a tokenizer's `special_tokens`."""
    return tuple(SENTINEL.format(i) for i in range(count))


def with_sentinels(tokenizer: Tokenizer) -> Tokenizer:
    """Wraps a tokenizer to encode and decode sentinels in text. Unchanged if its vocabulary has no sentinels."""
    present = itertools.takewhile(tokenizer.has_special, map(SENTINEL.format, itertools.count()))
    names = {name: tokenizer.special_id(name) for name in present}
    return SentinelTokenizer(tokenizer, names) if names else tokenizer


class SentinelTokenizer(Tokenizer):
    """The tokenizer interface that generation uses, with sentinels as text."""

    def __init__(self, tokenizer: Tokenizer, names: dict[str, int]):
        self._tokenizer, self._ids = tokenizer, names
        self._names = {i: name for name, i in names.items()}
        self.eos_id, self.vocab_size = tokenizer.eos_id, tokenizer.vocab_size
        self.continuation, self.tokens_are_words = tokenizer.continuation, tokenizer.tokens_are_words
        self.decodes_special = True

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        pattern = "|".join(map(re.escape, sorted(self._ids, key=len, reverse=True)))
        parts = re.split(f"({pattern})", text)  # text, name, text, ...
        special_ids = [self._ids[name] for name in parts[1::2]]
        return encode_between(self._tokenizer, parts[::2], special_ids)

    def decode(self, ids: Iterable[int]) -> str:
        if self._tokenizer.decodes_special:
            return self._tokenizer.decode(ids)
        texts = []
        for special, group in itertools.groupby(map(int, ids), self._names.__contains__):
            group_ids = list(group)
            texts.append("".join(self._names[i] for i in group_ids) if special else self._tokenizer.decode(group_ids))
        return "".join(texts)

    def token_bytes(self) -> list[bytes | None]:
        pieces = self._tokenizer.token_bytes()
        return [self._names[i].encode() if i in self._names else piece for i, piece in enumerate(pieces)]

    def special_id(self, name: str) -> int:
        return self._tokenizer.special_id(name)

    def to_json(self) -> dict[str, Any]:
        return self._tokenizer.to_json()
