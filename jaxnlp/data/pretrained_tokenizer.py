"""The tokenizer of a trained run, or of a model in Hugging Face's layout, with special tokens added at its end.

Every id the pretrained model knows keeps its meaning; the new tokens are the last rows of the vocabulary.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from jaxnlp.data.tokenizer import (
    ByteTokenizer,
    HuggingFace,
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Texts,
    Tokenizer,
    from_json,
)
from jaxnlp.errors import FieldError, UserError


@dataclasses.dataclass(kw_only=True)
class PretrainedTokenizer:
    """Trains nothing: what is pretrained fixes it.

    path: a run's folder, or one in Hugging Face's layout (a hub id's files have to be downloaded first).
    specials: tokens to add, as "<extract>"; those it has already are left as they are.
    separator: as `HuggingFace.separator`, for a folder in that layout.
    """

    path: str = ""
    specials: tuple[str, ...] = ()
    separator: str | None = None

    def check(self) -> None:
        if not self.path:
            raise FieldError("path", self.path, "expected the folder of a trained run, as runs/bert")

    def build(self, texts: Texts, cache_dir: pathlib.Path) -> Tokenizer:
        return extended(self._pretrained(texts, cache_dir), self.specials)

    def _pretrained(self, texts: Texts, cache_dir: pathlib.Path) -> Tokenizer:
        folder = pathlib.Path(self.path)
        found = [p for p in folder.glob("checkpoints/*/tokenizer/metadata") if p.parent.parent.name.isdigit()]
        if found:  # every checkpoint of a run has the same
            newest = max(found, key=lambda p: int(p.parent.parent.name))
            try:
                return from_json(json.loads(newest.read_text()))
            except (OSError, ValueError, KeyError) as e:
                if isinstance(e, UserError):
                    raise
                raise UserError(f"{newest}: damaged ({e})") from None
        if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
            raise FieldError(
                "data.tokenizer.path",
                self.path,
                "no checkpoint of a run and no tokenizer.json here; expected the folder of a trained run, as runs/bert",
            )
        return HuggingFace(path=self.path, separator=self.separator).build(texts, cache_dir)


def extended(tokenizer: Any, names: Iterable[str]) -> Any:
    """The tokenizer with special tokens of these names, new ones at the end of its vocabulary.

    Raises:
        UserError: a tokenizer of a kind of your own without a method `extended(names)`.
    """
    new = [name for name in names if not _has(tokenizer, name)]
    if not new:
        return tokenizer
    if isinstance(tokenizer, ByteTokenizer):
        data = tokenizer.to_json()
        return ByteTokenizer([*data.get("specials", ()), *new])
    if isinstance(tokenizer, SentencePieceTokenizer):
        return SentencePieceTokenizer(b"".join([tokenizer.model, *map(_control_piece, new)]))
    if isinstance(tokenizer, HuggingFaceTokenizer):
        library = tokenizer.library
        library.add_special_tokens(new)
        return HuggingFaceTokenizer(library.to_str(), tokenizer.to_json()["separator"])
    if hasattr(tokenizer, "extended"):
        return tokenizer.extended(new)
    raise UserError(f"data.tokenizer: {type(tokenizer).__name__} has no method extended(names) to add {', '.join(new)}")


def same_ids(old: Tokenizer, new: Tokenizer) -> bool:
    """Whether every id of `old` means the same to `new`, which may have special tokens more (`extended`)."""
    if old.to_json() == new.to_json():
        return True
    if type(old) is not type(new) or old.separator != new.separator or old.vocab_size >= new.vocab_size:
        return False
    if isinstance(old, SentencePieceTokenizer) and isinstance(new, SentencePieceTokenizer):
        return new.model.startswith(old.model)
    if isinstance(old, HuggingFaceTokenizer):
        ours, theirs = (json.loads(t.to_json()["tokenizer"]) for t in (old, new))
        specials = (ours.pop("added_tokens"), theirs.pop("added_tokens"))
        framing = ("truncation", "padding", "post_processor")  # what is put around a text, which we do ourselves
        same = all(ours.get(key) == theirs.get(key) for key in {*ours, *theirs} - {*framing})
        return same and specials[1][: len(specials[0])] == specials[0]
    names, more = (list(t.to_json().get("specials", ())) for t in (old, new))
    return more[: len(names)] == names


def _has(tokenizer: Tokenizer, name: str) -> bool:
    try:
        tokenizer.special(name)
    except FieldError:
        return False
    return True


def _control_piece(name: str) -> bytes:
    """A control symbol as bytes to append to a sentencepiece model, a protocol buffer, which adds it to the pieces:
    field 1 of the model; in it fields 1, the text, and 3, the type (3: control)."""
    text = name.encode()
    assert len(text) < 100, name  # lengths in one byte
    piece = b"\x0a" + bytes([len(text)]) + text + b"\x18\x03"
    return b"\x0a" + bytes([len(piece)]) + piece
