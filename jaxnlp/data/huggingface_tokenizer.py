"""Hugging Face tokenizers, from files or from objects of the `tokenizers` library.

A Hugging Face tokenizer may not be lossless: `decode(encode(text))` can differ from the text. Its `eos_id` must be a
special token of its vocabulary, so that no text can produce it.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from jaxnlp.data.control_tokens import unreachable, with_control_tokens
from jaxnlp.data.token_pieces import spelling
from jaxnlp.data.tokenizer import EOS_TOKENS, Texts, Tokenizer, TokenizerConfig, no_special
from jaxnlp.errors import FieldError, encoding, reading
from jaxnlp.paths import local

NOT_IDS = ("truncation", "padding", "post_processor")
"""Fields of a tokenizer.json that jaxnlp does not use: it never truncates, and adds special tokens itself."""


@dataclasses.dataclass(kw_only=True)
class HuggingFace(TokenizerConfig):
    """A Hugging Face tokenizer from local files.

    path: a `tokenizer.json`, or a folder with one or with GPT-2's `vocab.json` and `merges.txt`.
    eos_token: the token that separates documents; None uses the first of the usual ones (<|endoftext|>, </s>, ...) that
        the vocabulary has.
    special_tokens: special tokens to add, as "[MASK]". Those that the vocabulary already has are unchanged.
    """

    path: str = ""
    eos_token: str | None = None
    special_tokens: tuple[str, ...] = ()

    def build(self, texts: Texts, cache_dir: pathlib.Path) -> "HuggingFaceTokenizer":
        path = local(self.path)
        if not self.path or not path.exists():
            raise FieldError(
                "data.tokenizer.path", self.path, "no such file or folder; expected a tokenizer.json or its folder"
            )
        file = path / "tokenizer.json" if path.is_dir() else path
        model = read(file) if file.exists() else byte_level_bpe(path)
        with reading(path, "its tokenizer cannot be used, or is damaged"):
            tokenizer = wrap(model, self.eos_token)
            missing = [name for name in self.special_tokens if not tokenizer.has_special(name)]
            return tokenizer.extended(missing) if missing else tokenizer


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
        FieldError: the vocabulary has no such token, text can be encoded as it, or two tokens have the same id.
    """
    model = with_control_tokens(model)
    _check_ids(model)
    names = EOS_TOKENS if eos_token is None else (eos_token,)
    name = next((name for name in names if model.token_to_id(name) is not None), None)
    if name is None:
        raise FieldError(
            "data.tokenizer.eos_token",
            eos_token,
            f"the vocabulary has no {' or '.join(names)}; expected one of its tokens",
        )
    tokenizer = HuggingFaceTokenizer(model.to_str(), name)
    _check_ids(tokenizer._model)  # after a reload, the library may give other ids
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
    """A tokenizer of the `tokenizers` library.

    Args:
        model: its JSON. eos_token: name of the end-of-text token.
        appended: names of special tokens after the largest id of `model`. They are kept beside it where ids have gaps,
            since the library gives a new token the number of tokens as its id, which another token may have.
    """

    decodes_special = True

    def __init__(self, model: str, eos_token: str, appended: Iterable[str] = ()):
        self._name, self._text = eos_token, model
        self._fields: dict[str, Any] = json.loads(model)
        encoded = unreachable(self._fields)
        self._encoder = _encoder(encoded)
        self._model = self._encoder if encoded is self._fields else _library(self._fields)
        without_prefix = _without_first_prefix(encoded)
        self._follows = self._encoder if without_prefix == encoded else _encoder(without_prefix)
        self._size = 1 + max(self._model.get_vocab(with_added_tokens=True).values())  # ids may have gaps
        self._appended = {name: self._size + i for i, name in enumerate(appended)}
        self.vocab_size = self._size + len(self._appended)
        self.eos_id = self._model.token_to_id(eos_token)
        prefix = self._fields["model"].get("continuing_subword_prefix")
        self.continuation: bytes | None = prefix.encode() if prefix else None
        self.tokens_are_words = self._fields["model"]["type"] == "WordLevel"

    def special_id(self, name: str) -> int:
        special_tokens = {t.content: i for i, t in self._model.get_added_tokens_decoder().items() if t.special}
        special_tokens |= self._appended
        if name not in special_tokens:
            raise no_special(name, special_tokens)
        return special_tokens[name]

    def token_bytes(self) -> list[bytes | None]:
        text = spelling(self._fields).text
        pieces: list[bytes | None] = [None] * self.vocab_size
        for name, i in self._model.get_vocab(with_added_tokens=False).items():
            pieces[i] = text(name)
        for i, token in self._model.get_added_tokens_decoder().items():
            pieces[i] = None if token.special else token.content.encode()
        return pieces

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        with encoding(texts):
            return [e.ids for e in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_after_special(self, texts: list[str]) -> list[list[int]]:
        with encoding(texts):
            return [e.ids for e in self._follows.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_spans(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids and the (start, stop) characters of each token, for each text."""
        with encoding(texts):
            return [(e.ids, e.offsets) for e in self._encoder.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        ids, names = [int(i) for i in ids if i != self.eos_id], {i: name for name, i in self._appended.items()}
        if names.keys().isdisjoint(ids):
            return self._model.decode([i for i in ids if i < self._size], skip_special_tokens=False)
        groups = itertools.groupby(ids, lambda i: i in names)
        return "".join(
            "".join(names[i] for i in group) if appended else self.decode(group) for appended, group in groups
        )

    @property
    def eos_token(self) -> str:
        """The name of the end-of-text token."""
        return self._name

    @property
    def library(self) -> Any:
        """The underlying `tokenizers` object, with the post-processing of its file but never truncation or padding."""
        return never_cut(self._saved())

    def _saved(self) -> Any:
        import tokenizers

        library = tokenizers.Tokenizer.from_str(self._text)
        if not self._appended:
            return library
        fields, ids = json.loads(self._text), {t["content"]: t["id"] for t in self._fields["added_tokens"]}
        fields["model"]["vocab"] |= ids | self._appended  # the library leaves the ids of the model's vocabulary alone
        library = tokenizers.Tokenizer.from_str(json.dumps(fields))
        library.add_special_tokens([*self._appended])
        return library

    def extended(self, names: list[str]) -> "HuggingFaceTokenizer":
        library, ids = self._saved(), range(self.vocab_size, self.vocab_size + len(names))
        library.add_special_tokens(names)
        if not self._appended:
            again = HuggingFaceTokenizer(library.to_str(), self._name)  # with gaps, a reload may change the new ids
            if [again._model.token_to_id(name) for name in names] == [*ids] and again.eos_id == self.eos_id:
                return again
        return HuggingFaceTokenizer(self._text, self._name, [*self._appended, *names])

    def extends(self, old: Tokenizer) -> bool:
        if not isinstance(old, HuggingFaceTokenizer) or old.eos_id != self.eos_id:
            return False
        fields, old_fields = ({k: v for k, v in t._fields.items() if k not in NOT_IDS} for t in (self, old))
        if fields == old_fields:
            return [*self._appended][: len(old._appended)] == [*old._appended]
        added_tokens, old_added_tokens = fields.pop("added_tokens"), old_fields.pop("added_tokens")
        fewer = old.vocab_size < self.vocab_size and not old._appended
        return fields == old_fields and fewer and added_tokens[: len(old_added_tokens)] == old_added_tokens

    def to_json(self) -> dict[str, Any]:
        appended = {"appended": [*self._appended]} if self._appended else {}
        return {"kind": "huggingface", "separator": self._name, "tokenizer": self._text, **appended}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "HuggingFaceTokenizer":
        return cls(data["tokenizer"], data["separator"], data.get("appended", ()))


def never_cut(model: Any) -> Any:
    """The same object of the `tokenizers` library, without the truncation and padding that its file may configure."""
    model.no_truncation()
    model.no_padding()
    return model


def _check_ids(model: Any) -> None:
    """Raises FieldError if an added token has the id of another token.

    The library ignores the ids of added tokens in a file and counts on from the number of tokens.
    """
    own = model.get_vocab(with_added_tokens=False)
    names = {i: name for name, i in own.items()}
    for name, i in model.get_vocab(with_added_tokens=True).items():
        if name not in own and names.setdefault(i, name) != name:
            expected = f"the library gives it the id {i} of {names[i]!r}; add it to the model's vocabulary in the file"
            raise FieldError("data.tokenizer.path", name, expected)


def _library(fields: dict[str, Any]) -> Any:
    """The library's tokenizer of the contents of a tokenizer.json; it never truncates."""
    import tokenizers

    return never_cut(tokenizers.Tokenizer.from_str(json.dumps(fields)))


def _encoder(fields: dict[str, Any]) -> Any:
    """As `_library`, for encoding: the names of special tokens in a text are encoded as text."""
    encoder = _library(fields)
    encoder.encode_special_tokens = True
    return encoder


def _without_first_prefix(fields: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json as it acts on text after a special token: no space is put before it if only the "first" has one.

    Other prefixes (Metaspace's "always", the normalizer Prepend) are put before the text after every special token.
    """
    pre_tokenizer = fields.get("pre_tokenizer") or {}
    change = lambda part: {**part, "prepend_scheme": "never"} if part.get("prepend_scheme") == "first" else part
    parts = [change(part) for part in pre_tokenizer.get("pretokenizers", ())]
    pre_tokenizer = {**change(pre_tokenizer), **({"pretokenizers": parts} if parts else {})}
    return {**fields, "pre_tokenizer": pre_tokenizer or None}
