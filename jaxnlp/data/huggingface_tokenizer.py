"""Hugging Face tokenizers, from files or from objects of the `tokenizers` library.

A Hugging Face tokenizer may not be lossless: `decode(encode(text))` can differ from the text. Its `eos_id` must be a
special token of its vocabulary, so that no text can produce it.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from jaxnlp.data.control_tokens import unreachable, with_control_tokens
from jaxnlp.data.tokenizer import EOS_TOKENS, Texts, Tokenizer, TokenizerConfig, no_special
from jaxnlp.errors import FieldError, encoding, reading
from jaxnlp.paths import local


@dataclasses.dataclass(kw_only=True)
class HuggingFace(TokenizerConfig):
    """A Hugging Face tokenizer from local files.

    path: a `tokenizer.json`, or a folder with one or with GPT-2's `vocab.json` and `merges.txt`.
    eos_token: the token that separates documents; None uses the first of the usual ones (<|endoftext|>, </s>, ...) that
        the vocabulary has.
    """

    path: str = ""
    eos_token: str | None = None

    def build(self, texts: Texts, cache_dir: pathlib.Path) -> "HuggingFaceTokenizer":

        path = local(self.path)
        if not self.path or not path.exists():
            raise FieldError(
                "data.tokenizer.path", self.path, "no such file or folder; expected a tokenizer.json or its folder"
            )
        file = path / "tokenizer.json" if path.is_dir() else path
        model = read(file) if file.exists() else byte_level_bpe(path)
        with reading(path, "its tokenizer cannot be used, or is damaged"):
            return wrap(model, self.eos_token)


def read(file: pathlib.Path) -> Any:
    """The tokenizer of a tokenizer.json, an object of the `tokenizers` library.

    Raises:
        UserError: a file that is damaged, or that a newer version of the library has written.
    """
    import tokenizers

    expected = (
        f"not a tokenizer that tokenizers {tokenizers.__version__} can read; a newer version may, or it is damaged"
    )
    with reading(file, expected):
        return tokenizers.Tokenizer.from_file(str(file))


def wrap(model: Any, eos_token: str | None = None) -> "HuggingFaceTokenizer":
    """Wraps a tokenizer of the `tokenizers` library as a `HuggingFaceTokenizer`.

    eos_token: the token that separates documents; None uses the first of `EOS_TOKENS` that the vocabulary has.

    Raises:
        FieldError: the vocabulary has no such token, or text can be encoded as it.
    """
    model = with_control_tokens(model)
    names = EOS_TOKENS if eos_token is None else (eos_token,)
    name = next((name for name in names if model.token_to_id(name) is not None), None)
    if name is None:
        raise FieldError(
            "data.tokenizer.eos_token",
            eos_token,
            f"the vocabulary has no {' or '.join(names)}; expected one of its tokens",
        )
    tokenizer = HuggingFaceTokenizer(model.to_str(), name)
    if tokenizer.eos_id in tokenizer.encode_batch([name])[0]:
        raise FieldError(
            "data.tokenizer.eos_token",
            name,
            "ordinary text can be encoded to this token; expected a special token of the vocabulary",
        )
    return tokenizer


def byte_level_bpe(folder: pathlib.Path) -> Any:
    """Builds GPT-2's tokenizer, an object of the `tokenizers` library, from its vocab.json and merges.txt."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    for file in (vocab, merges):
        if not file.exists():
            raise FieldError("data.tokenizer.path", str(folder), f"contains neither tokenizer.json nor {file.name}")
    with reading(folder, "vocab.json and merges.txt are not those of a byte-level BPE, or damaged"):
        model = Fast(models.BPE.from_file(str(vocab), str(merges)))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    model.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return model


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library. model: its JSON. eos_token: name of the end-of-text token."""

    def __init__(self, model: str, eos_token: str):
        import tokenizers

        self._name, self._text = eos_token, model
        self._model: Any = tokenizers.Tokenizer.from_str(model)
        fields = json.loads(model)
        self._encoder: Any = tokenizers.Tokenizer.from_str(json.dumps(unreachable(fields)))
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._encoder.encode_special_tokens = True  # the name of a special token in a text is encoded as text
        self.vocab_size = self._model.get_vocab_size(with_added_tokens=True)
        self.eos_id = self._model.token_to_id(eos_token)
        prefix = fields["model"].get("continuing_subword_prefix")
        self.continuation: bytes | None = prefix.encode() if prefix else None

    def special_id(self, name: str) -> int:
        special_tokens = {t.content: i for i, t in self._model.get_added_tokens_decoder().items() if t.special}
        if name not in special_tokens:
            raise no_special(name, special_tokens)
        return special_tokens[name]

    def token_bytes(self) -> list[bytes | None]:
        special_tokens = {i for i, token in self._model.get_added_tokens_decoder().items() if token.special}
        names = [None if i in special_tokens else self._model.id_to_token(i) for i in range(self.vocab_size)]
        if self.continuation is not None:
            return [None if name is None else name.encode() for name in names]
        return [None if name is None else _unescape(name) for name in names]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        with encoding(texts):
            return [e.ids for e in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_spans(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids and the (start, stop) characters of each token, for each text."""
        with encoding(texts):
            return [(e.ids, e.offsets) for e in self._encoder.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        ids = [int(i) for i in ids if i < self.vocab_size and i != self.eos_id]
        return self._model.decode(ids, skip_special_tokens=False)

    @property
    def library(self) -> Any:
        """The underlying `tokenizers` object, with the post-processing and padding that its file configures."""
        import tokenizers

        return tokenizers.Tokenizer.from_str(self._text)

    def extended(self, names: list[str]) -> "HuggingFaceTokenizer":
        library = self.library
        library.add_special_tokens(names)
        return HuggingFaceTokenizer(library.to_str(), self._name)

    def extends(self, old: Tokenizer) -> bool:
        if not isinstance(old, HuggingFaceTokenizer) or old.eos_id != self.eos_id:
            return False
        if old.to_json() == self.to_json():
            return True
        fields, old_fields = json.loads(self._text), json.loads(old._text)
        added_tokens, old_added_tokens = fields.pop("added_tokens"), old_fields.pop("added_tokens")
        ignored = ("truncation", "padding", "post_processor")  # jaxnlp adds special tokens itself
        equal = all(fields.get(key) == old_fields.get(key) for key in {*fields, *old_fields} - {*ignored})
        return equal and old.vocab_size < self.vocab_size and added_tokens[: len(old_added_tokens)] == old_added_tokens

    def to_json(self) -> dict[str, Any]:
        return {"kind": "huggingface", "separator": self._name, "tokenizer": self._text}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "HuggingFaceTokenizer":
        return cls(data["tokenizer"], data["separator"])


def _unescape(name: str) -> bytes:
    """The bytes of a piece of a byte-level BPE or of a sentencepiece vocabulary."""
    if all(c in _BYTES for c in name):
        return bytes(_BYTES[c] for c in name)
    return name.replace("\u2581", " ").encode()


def _byte_letters() -> dict[str, int]:
    """Maps GPT-2's letter for each byte to the byte. Printable bytes map to themselves, others to U+0100 onwards."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other_bytes = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(other_bytes)}


_BYTES = _byte_letters()
