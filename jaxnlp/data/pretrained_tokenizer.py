"""The tokenizer of a trained run, or of a model in Hugging Face's layout, with special tokens added at its end.

Every id the pretrained model knows keeps its meaning; the new tokens are the last rows of the vocabulary.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable

from jaxnlp.data.tokenizer import HuggingFace, Texts, Tokenizer, TokenizerConfig, from_json
from jaxnlp.errors import FieldError, UserError


@dataclasses.dataclass(kw_only=True)
class PretrainedTokenizer(TokenizerConfig):
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


def extended(tokenizer: Tokenizer, names: Iterable[str]) -> Tokenizer:
    """The tokenizer with special tokens of these names; new ones come at the end of its vocabulary.

    Raises:
        UserError: a tokenizer that cannot be extended.
    """
    new = [name for name in names if not tokenizer.has_special(name)]
    return tokenizer.extended(new) if new else tokenizer


def same_ids(old: Tokenizer, new: Tokenizer) -> bool:
    """Whether every id of `old` means the same to `new`, which may have more special tokens (`extended`)."""
    return new.extends(old)
