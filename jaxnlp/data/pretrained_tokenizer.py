"""The tokenizer of a trained run or of a Hugging Face model folder, extended with special tokens.

The ids of the pretrained vocabulary keep their meaning; the new tokens come after them.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable

from jaxnlp import strict_json
from jaxnlp.data.huggingface_tokenizer import HuggingFace
from jaxnlp.data.tokenizer import Texts, Tokenizer, TokenizerConfig, from_json
from jaxnlp.errors import FieldError, reading
from jaxnlp.paths import local

FILE = "jaxnlp_tokenizer.json"
"""The tokenizer of an exported model, as checkpoints hold it. Other libraries do not read this file."""


@dataclasses.dataclass(kw_only=True)
class PretrainedTokenizer(TokenizerConfig):
    """Loads the tokenizer of a pretrained model. Nothing is trained.

    path: a run folder, or a folder in Hugging Face's layout (the files of a hub id must be downloaded first).
    special_tokens: special tokens to add, as "<extract>". Those that the vocabulary already has are unchanged.
    eos_token: as `HuggingFace.eos_token`; used for a folder in Hugging Face's layout only.
    """

    path: str = ""
    special_tokens: tuple[str, ...] = ()
    eos_token: str | None = None

    def check(self) -> None:
        if not self.path:
            raise FieldError("path", self.path, "expected the folder of a trained run, for example runs/bert")

    def build(self, texts: Texts, cache_dir: pathlib.Path) -> Tokenizer:
        return extended(self._pretrained(texts, cache_dir), self.special_tokens)

    def _pretrained(self, texts: Texts, cache_dir: pathlib.Path) -> Tokenizer:
        folder = local(self.path)
        checkpoints = [p for p in folder.glob("checkpoints/*/tokenizer/metadata") if p.parent.parent.name.isdigit()]
        if checkpoints:  # all checkpoints of a run have the same tokenizer
            return _read(max(checkpoints, key=lambda p: int(p.parent.parent.name)))
        exported = read_exported(folder)
        if exported is not None:
            return exported
        if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
            raise FieldError(
                "data.tokenizer.path",
                self.path,
                "no checkpoint and no tokenizer.json; expected the folder of a trained run, for example runs/bert",
            )
        return HuggingFace(path=self.path, eos_token=self.eos_token).build(texts, cache_dir)


def exported(tokenizer: Tokenizer) -> str:
    """The text of `FILE` for a tokenizer."""
    return strict_json.dumps(tokenizer.to_json()) + "\n"


def read_exported(folder: pathlib.Path) -> Tokenizer | None:
    """The tokenizer in `FILE`; None if the folder has none. Raises UserError for a damaged file."""
    file = folder / FILE
    return _read(file) if file.exists() else None


def _read(file: pathlib.Path) -> Tokenizer:
    with reading(file, "damaged"):
        return from_json(json.loads(file.read_text()))


def extended(tokenizer: Tokenizer, names: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer that has the named special tokens; missing ones are added at the end of its vocabulary.

    Raises:
        UserError: the tokenizer cannot be extended.
    """
    missing = [name for name in names if not tokenizer.has_special(name)]
    return tokenizer.extended(missing) if missing else tokenizer


def same_ids(old: Tokenizer, new: Tokenizer) -> bool:
    """Whether every id of `old` has the same meaning in `new`, which may have more special tokens (`extended`)."""
    return new.extends(old)
