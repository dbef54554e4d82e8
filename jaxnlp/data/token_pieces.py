"""The text of each token of a Hugging Face vocabulary, as bytes.

What a name in the vocabulary means depends on the kind of the tokenizer, which its normalizer, pre-tokenizer, model and
decoder show, not on the name itself: "\u00e9" is the byte E9 of a byte-level vocabulary and a letter of any other, and
"<0x0A>" is a byte only with byte fallback.

  kind            name                       text
  byte-level      "\u0120caf\u00c3\u00a9"               " caf\u00e9", one byte per letter (GPT-2, RoBERTa, Llama 3)
  sentencepiece   "\u2581caf\u00e9"                " caf\u00e9" (Unigram, or BPE as in Llama 2)
  byte fallback   "<0x0A>"                   the byte 0A
  WordPiece       "##ing"                    as it is; `Tokenizer.continuation` is the prefix
  end of word     "cat</w>"                  "cat " (the first GPT, CLIP)
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How the names of a vocabulary spell text.

    byte_level: each letter of a name is a byte. byte_fallback: names such as <0x0A> are bytes.
    suffix: the suffix of a word's last token, "" if there is none.
    replaced: functions that replace the marks of spaces, in order.
    """

    byte_level: bool
    byte_fallback: bool
    suffix: str
    replaced: tuple[Callable[[str], str], ...]

    def text(self, name: str) -> bytes:
        """The UTF-8 bytes, maybe part of a character, of the token with this name."""
        if self.byte_fallback and (match := BYTE.fullmatch(name)):
            return bytes([int(match[1], 16)])
        ends_word = bool(self.suffix) and name.endswith(self.suffix)
        name = name.removesuffix(self.suffix) if ends_word else name
        return (self._bytes(name) or self._plain(name)) + b" " * ends_word

    def _bytes(self, name: str) -> bytes | None:
        """The bytes that the letters of a byte-level name are; None for another name."""
        try:
            return bytes(map(BYTE_OF_LETTER.__getitem__, name)) if self.byte_level else None
        except KeyError:
            return None

    def _plain(self, name: str) -> bytes:
        for replace in self.replaced:
            name = replace(name)
        return name.encode()


def spelling(tokenizer: dict[str, Any]) -> Spelling:
    """The spelling of a tokenizer.

    Args:
        tokenizer: the contents of a tokenizer.json.
    """
    stages = {name: list(_parts(tokenizer.get(name))) for name in ("normalizer", "pre_tokenizer", "decoder")}
    parts, model = [part for stage in stages.values() for part in stage], tokenizer["model"]
    types = {part["type"] for part in parts}
    byte_level = "ByteLevel" in types
    suffixes = [part.get("suffix") for part in stages["decoder"] if part["type"] == "BPEDecoder"]
    suffix = next(filter(None, [model.get("end_of_word_suffix"), *suffixes]), "")
    replaced = [_replacement(part) for part in stages["decoder"] if part["type"] == "Replace"]
    marks = {part.get("replacement", SPACE) for part in parts if part["type"] == "Metaspace"}
    marks |= {part["content"] for part in stages["normalizer"] if _marks_spaces(part)}
    replaced += [lambda text, mark=mark: text.replace(mark, " ") for mark in sorted(marks)]
    byte_fallback = bool(model.get("byte_fallback")) or "ByteFallback" in types
    return Spelling(byte_level, byte_fallback, suffix, tuple(replaced))


def _parts(stage: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The stage itself, or the parts of a sequence."""
    if stage is None:
        return
    if stage["type"] != "Sequence":
        yield stage
        return
    for name in ("normalizers", "pretokenizers", "decoders"):
        for part in stage.get(name, ()):
            yield from _parts(part)


def _marks_spaces(part: dict[str, Any]) -> bool:
    """Whether a part of a normalizer replaces each space by a visible mark."""
    return part["type"] == "Replace" and part["pattern"] == {"String": " "} and bool(part["content"].strip())


def _replacement(part: dict[str, Any]) -> Callable[[str], str]:
    """The replacement of a decoder, on one name."""
    import tokenizers

    pattern = part["pattern"]
    compiled = tokenizers.Regex(pattern["Regex"]) if "Regex" in pattern else pattern["String"]
    decoder = tokenizers.decoders.Replace(compiled, part["content"])
    return lambda name: decoder.decode([name])


def _byte_of_letter() -> dict[str, int]:
    """Maps GPT-2's letter for each byte to the byte. Printable bytes map to themselves, others to U+0100 onwards."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other_bytes = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(other_bytes)}


BYTE_OF_LETTER = _byte_of_letter()
