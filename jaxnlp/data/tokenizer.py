"""Tokenizers: the base classes, bytes, and sentencepiece trained on the source.

A config object names a tokenizer and its `build` makes it. The tokenizer can be written to JSON and read back without
the files that it was built from.

Bytes and SentencePiece are lossless: `decode(encode(text)) == text`. A Hugging Face tokenizer may not be. Each
tokenizer has one end-of-text token, `eos_id`, that no text can produce (in a Hugging Face vocabulary it must be a
special token). It is placed before every document and after the last, so it marks both the beginning and the end of a
document, like GPT-2's <|endoftext|>.
"""

import abc
import base64
import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from jaxnlp.errors import FieldError, UserError, encoding
from jaxnlp.scratch import replacing

EOS_TOKEN = "<|endoftext|>"
EOS_TOKENS = (EOS_TOKEN, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")

Texts = Callable[[], Iterable[str]]


class Tokenizer(abc.ABC):
    """Base class of tokenizers.

    vocab_size: the largest id plus one; ids may have gaps. eos_id: id of the token placed before every document and
        after the last.
    continuation: prefix of tokens that continue a word, as WordPiece's "##"; None if tokens are plain text.
    tokens_are_words: whether every token is a word of its own.
    decodes_special: whether `decode` includes the names of special tokens other than the end-of-text token.
    """

    vocab_size: int
    eos_id: int
    continuation: bytes | None = None
    tokens_are_words: bool = False
    decodes_special: bool = False

    @abc.abstractmethod
    def special_id(self, name: str) -> int:
        """The id of a special token, as "[MASK]". Raises FieldError if the vocabulary has no such special token."""

    @abc.abstractmethod
    def token_bytes(self) -> list[bytes | None]:
        """The text of each id as UTF-8 bytes, maybe part of a character; None for a special token or a gap."""

    @abc.abstractmethod
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def encode_after_special(self, texts: list[str]) -> list[list[int]]:
        """The ids of texts that follow a special token within a text, as after a mask."""
        return self.encode_batch(texts)

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str: ...

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The tokenizer as JSON values, for `from_json`."""

    def has_special(self, name: str) -> bool:
        try:
            self.special_id(name)
        except FieldError:
            return False
        return True

    def extended(self, names: list[str]) -> "Tokenizer":
        """Returns a tokenizer with new special tokens at the end of its vocabulary. Raises UserError if unsupported."""
        added = ", ".join(names)
        raise UserError(f"data.tokenizer: {type(self).__name__} cannot add {added}; it has no method extended(names)")

    def extends(self, old: "Tokenizer") -> bool:
        """Whether every id of `old` has the same meaning in this tokenizer, which may have more special tokens."""
        return self.to_json() == old.to_json()

    def encode_spans(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]] | None:
        """For each text, its ids and the (start, stop) characters of each token; None if only `token_bytes` knows."""
        return None


class TokenizerConfig(abc.ABC):
    """Base class of tokenizer configs."""

    @abc.abstractmethod
    def build(self, texts: Texts, cache_dir: pathlib.Path) -> Tokenizer:
        """Builds the tokenizer, training it on `texts()` if necessary. Trained models are cached in `cache_dir`."""


def from_json(data: dict[str, Any]) -> Tokenizer:
    """Restores a tokenizer from the output of `to_json`. Raises UserError for an unknown kind."""
    from jaxnlp.data.huggingface_tokenizer import HuggingFaceTokenizer  # avoids a circular import

    kinds = {"bytes": ByteTokenizer, "sentencepiece": SentencePieceTokenizer, "huggingface": HuggingFaceTokenizer}
    if str(data.get("kind")) not in kinds:
        raise UserError(f"tokenizer: kind {data.get('kind')!r} is unknown; expected one of {', '.join(kinds)}")
    return kinds[data["kind"]].from_json(data)


def fingerprint(tokenizer: Tokenizer) -> str:
    """A short hash that identifies the tokenizer."""
    text = json.dumps(tokenizer.to_json(), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def no_special(name: str, special_tokens: Iterable[str]) -> FieldError:
    listed = ", ".join(special_tokens) or "none"
    return FieldError(
        "data.tokenizer.special_tokens", name, f"the vocabulary has no such special token (it has: {listed}); add it"
    )


@dataclasses.dataclass(kw_only=True)
class Bytes(TokenizerConfig):
    """UTF-8 bytes: 256 tokens, the end-of-text token and `special_tokens` (as "[MASK]"). Encodes any text."""

    special_tokens: tuple[str, ...] = ()

    def build(self, texts: Texts, cache_dir: pathlib.Path) -> "ByteTokenizer":
        return ByteTokenizer(self.special_tokens)


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes, 256 is the end-of-text token, and the special tokens follow."""

    eos_id = 256

    def __init__(self, special_tokens: Iterable[str] = ()):
        self._special_tokens = tuple(special_tokens)
        self.vocab_size = 257 + len(self._special_tokens)

    def special_id(self, name: str) -> int:
        if name not in self._special_tokens:
            raise no_special(name, self._special_tokens)
        return 257 + self._special_tokens.index(name)

    def token_bytes(self) -> list[bytes | None]:
        return [*(bytes([i]) for i in range(256)), *[None] * (self.vocab_size - 256)]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        with encoding(texts):
            return [list(text.encode()) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def extended(self, names: list[str]) -> "ByteTokenizer":
        return ByteTokenizer([*self._special_tokens, *names])

    def extends(self, old: Tokenizer) -> bool:
        if not isinstance(old, ByteTokenizer) or type(old) is not type(self):
            return False
        return self._special_tokens[: len(old._special_tokens)] == old._special_tokens

    def to_json(self) -> dict[str, Any]:
        return {"kind": "bytes", **({"specials": list(self._special_tokens)} if self._special_tokens else {})}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ByteTokenizer":
        return cls(data.get("specials", ()))


@dataclasses.dataclass(kw_only=True)
class SentencePiece(TokenizerConfig):
    """A sentencepiece model (Kudo and Richardson 2018, arXiv:1808.06226), trained on the train split.

    The model is trained without normalisation and with byte fallback, so that code and any script are encoded without
    loss. The trained model is cached under a hash of its settings and training text.

    vocab_size: number of tokens, including the 256 byte-fallback tokens, the end-of-text token and
        `special_tokens`.
    model_type: "bpe" or "unigram".
    train_bytes: size of the training text in bytes, taken from the start of the train split.
    special_tokens: names of special tokens besides the end-of-text token, as "[MASK]"; no text is encoded as them.
    """

    vocab_size: int = 8192
    model_type: str = "bpe"
    train_bytes: int = 20_000_000
    special_tokens: tuple[str, ...] = ()

    def check(self) -> None:
        if self.vocab_size < 300:
            raise FieldError(
                "vocab_size", self.vocab_size, "expected at least 300, for 256 bytes, special tokens and some pieces"
            )
        if self.model_type not in ("bpe", "unigram"):
            raise FieldError("model_type", self.model_type, "expected 'bpe' or 'unigram'")
        if self.train_bytes < 1:
            raise FieldError("train_bytes", self.train_bytes, "expected a positive number of bytes")

    def build(self, texts: Texts, cache_dir: pathlib.Path) -> "SentencePieceTokenizer":
        setting = " ".join((str(self.vocab_size), self.model_type, *self.special_tokens))
        pieces, hasher = [], hashlib.blake2b(setting.encode(), digest_size=16)
        room = self.train_bytes
        for text in texts():
            for start in range(0, len(text), 4000):  # sentencepiece expects short "sentences"
                piece = text[start : start + 4000]
                pieces.append(piece)
                hasher.update(piece.encode())
                room -= len(piece.encode())
            if room <= 0:
                break
        path = cache_dir / "tokenizers" / f"sentencepiece-{hasher.hexdigest()}.model"
        if not path.exists():
            model = self._train(pieces)
            with replacing(path, "free disk space, or choose another $JAXNLP_CACHE or data.cache_dir") as new:
                new.write_bytes(model)
        return SentencePieceTokenizer(path.read_bytes())

    def _train(self, pieces: list[str]) -> bytes:
        import sentencepiece

        out = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(pieces),
                model_writer=out,
                vocab_size=self.vocab_size,
                model_type=self.model_type,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                num_threads=1,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                max_sentence_length=1 << 20,
                control_symbols=[EOS_TOKEN, *self.special_tokens],
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as e:
            reason = str(e).split(") ")[-1].strip()
            raise UserError(
                f"data.tokenizer.vocab_size={self.vocab_size}: sentencepiece cannot train on this text: {reason}"
            ) from None
        return out.getvalue()


class SentencePieceTokenizer(Tokenizer):
    """A trained sentencepiece model. model: its serialized protocol buffer."""

    def __init__(self, model: bytes):
        import sentencepiece

        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)
        self.vocab_size = self._processor.vocab_size()
        self._processor.id_to_piece(list(range(self.vocab_size)))  # raises UnicodeDecodeError for a damaged model
        self.eos_id = self._processor.piece_to_id(EOS_TOKEN)
        # sentencepiece represents a space as U+2581, so a literal U+2581 must be encoded as bytes.
        self._block = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in "\u2581".encode()]

    def special_id(self, name: str) -> int:
        token_id = self._processor.piece_to_id(name)
        if self._processor.id_to_piece(token_id) != name or not self._processor.is_control(token_id):
            names = (self._processor.id_to_piece(i) for i in range(self.vocab_size) if self._processor.is_control(i))
            raise no_special(name, names)
        return token_id

    def token_bytes(self) -> list[bytes | None]:
        return [self._piece(i) for i in range(self.vocab_size)]

    def _piece(self, i: int) -> bytes | None:
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes([int(piece[1:-1], 16)])
        special = self._processor.is_control(i) or self._processor.is_unknown(i)
        return None if special else piece.replace("\u2581", " ").encode()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        with encoding(texts):
            return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        if "\u2581" not in text:
            return self._processor.encode(text)
        first, *later = (self._processor.encode(part) for part in text.split("\u2581"))
        for part in later:
            first += self._block + part
        return first

    def decode(self, ids: Iterable[int]) -> str:
        return self._processor.decode([int(i) for i in ids if i < self.vocab_size])

    def extended(self, names: list[str]) -> "SentencePieceTokenizer":
        return SentencePieceTokenizer(b"".join([self.model, *map(_control_piece, names)]))

    def extends(self, old: Tokenizer) -> bool:
        if not isinstance(old, SentencePieceTokenizer) or old.eos_id != self.eos_id:
            return False
        return self.model.startswith(old.model)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "sentencepiece", "model": base64.b64encode(self.model).decode()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SentencePieceTokenizer":
        return cls(base64.b64decode(data["model"]))


def _control_piece(name: str) -> bytes:
    """The bytes that add a control symbol to a sentencepiece model when appended to it.

    The model is a protocol buffer. Its field 1 is a piece, with the fields 1, the text, and 3, the type (3: control).
    """
    text = name.encode()
    assert len(text) < 100, name  # the length is stored in one byte
    piece = b"\x0a" + bytes([len(text)]) + text + b"\x18\x03"
    return b"\x0a" + bytes([len(piece)]) + piece
