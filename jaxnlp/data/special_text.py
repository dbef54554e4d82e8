"""Special tokens as text: "<|im_start|>" in a text becomes the token, as the library `tokenizers` encodes by default.

In other places the names of special tokens in a text are text, so that no prompt can end or begin a document.
"""

from collections.abc import Iterable
from typing import Any

from jaxnlp.data.huggingface_tokenizer import HuggingFaceTokenizer, never_cut
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError, encoding


def with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Wraps a tokenizer to encode the names of special tokens in text. Raises UserError if it is not Hugging Face's."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        kind = type(tokenizer).__name__
        raise UserError(f"special tokens in prompts: {kind} has no names for them; expected a Hugging Face tokenizer")
    return SpecialTextTokenizer(tokenizer)


class SpecialTextTokenizer(Tokenizer):
    """The tokenizer interface that generation uses, with special tokens as text."""

    decodes_special = True

    def __init__(self, tokenizer: HuggingFaceTokenizer):
        self._tokenizer, self._library = tokenizer, never_cut(tokenizer.library)
        self.eos_id, self.vocab_size = tokenizer.eos_id, tokenizer.vocab_size
        self.continuation, self.tokens_are_words = tokenizer.continuation, tokenizer.tokens_are_words

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        with encoding(texts):
            return [e.ids for e in self._library.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(ids)

    def token_bytes(self) -> list[bytes | None]:
        return self._tokenizer.token_bytes()

    def special_id(self, name: str) -> int:
        return self._tokenizer.special_id(name)

    def to_json(self) -> dict[str, Any]:
        return self._tokenizer.to_json()
