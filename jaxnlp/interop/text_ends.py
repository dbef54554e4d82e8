"""The tokens with which the texts of a checkpoint in Hugging Face's layout begin and end, as its own files say.

transformers reads them from three files: the post-processor of `tokenizer.json` puts tokens around every text (without
that file, `add_bos_token` and `add_eos_token` of `tokenizer_config.json` do); `generation_config.json`, or without it
`config.json`, names the tokens that end a generated text, of which there may be several.
"""

import dataclasses
from typing import Any

from jaxnlp.errors import UserError, reading
from jaxnlp.interop.config_defaults import with_defaults
from jaxnlp.interop.source_files import CONFIG, GENERATION, TOKENIZER, SourceFiles


@dataclasses.dataclass(frozen=True)
class TextEnds:
    """Ids of tokens.

    before, after: those that the tokenizer puts before and after every text, as Llama's `<s>` and T5's `</s>`.
    eos: those that end a generated text. bos: the beginning of a text without a prompt; () if no file names one.
    decoder_start: the beginning of the decoder's input, for an encoder-decoder; None for other models.
    eos_name: the name of the end-of-text token; None if no file names one.
    names_eos: whether a file has `eos_token_id`: then no other token ends a generated text, also if `eos` is empty.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    eos: tuple[int, ...]
    bos: tuple[int, ...]
    decoder_start: tuple[int, ...] | None
    eos_name: str | None
    names_eos: bool


def text_ends(source: SourceFiles, library: Any, kind: str) -> TextEnds:
    """Reads the files of a checkpoint.

    Args:
        library: its tokenizer, an object of the `tokenizers` library. kind: of our config, as "decoder".

    Raises:
        UserError: a file does not hold what transformers writes there.
    """
    with reading(
        f"{CONFIG}, {GENERATION} or tokenizer_config.json", "its special tokens cannot be read, or are damaged"
    ):
        return _text_ends(source, library, kind)


def _text_ends(source: SourceFiles, library: Any, kind: str) -> TextEnds:
    names, vocab = special_names(source), set(library.get_vocab(with_added_tokens=True).values())
    ends = _ids(source, "eos_token_id")
    eos = tuple(i for i in ends if i in vocab)
    bos = tuple(i for i in _ids(source, "bos_token_id") if i in vocab)[:1]
    start = None
    if kind == "encoder-decoder":
        padding = _ids(source, "pad_token_id") or (with_defaults(source.json(CONFIG))["pad_token_id"],)
        start = _ids(source, "decoder_start_token_id") or padding
    return TextEnds(
        *_around(source, library, names), eos, bos, start, _eos_name(library, eos, names.get("eos_token")), bool(ends)
    )


def _ids(source: SourceFiles, field: str) -> tuple[int, ...]:
    """The ids of tokens that a field holds: none, one or several. Raises UserError if it holds anything else."""
    name = GENERATION if field in source.json(GENERATION) else CONFIG
    value = source.json(name).get(field)
    ids = _as_tuple(value)
    if any(type(i) is not int for i in ids):
        raise UserError(f"{name}: {field}={value!r}: expected the id of a token, a list of ids, or null")
    return ids


def special_names(source: SourceFiles) -> dict[str, str]:
    """The names of special tokens by their roles, as {"eos_token": "</s>"}."""
    fields = {**source.json("special_tokens_map.json"), **source.json("tokenizer_config.json")}
    text = lambda value: value.get("content") if isinstance(value, dict) else value
    values = {role: text(value) for role, value in fields.items() if role.endswith("_token")}
    return {role: value for role, value in values.items() if isinstance(value, str)}


def _around(source: SourceFiles, library: Any, names: dict[str, str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(before, after): the tokens around every text."""
    if TOKENIZER not in source.files:
        settings = source.json("tokenizer_config.json")
        roles = (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token"))
        ids = [library.token_to_id(names.get(role, "")) if settings.get(flag) else None for flag, role in roles]
        return _as_tuple(ids[0]), _as_tuple(ids[1])
    encoded = library.encode("a")
    added = encoded.special_tokens_mask
    if all(added):  # the text has no token
        return (tuple(encoded.ids), ())
    begin, end = added.index(0), len(added) - added[::-1].index(0)
    return tuple(encoded.ids[:begin]), tuple(encoded.ids[end:])


def _eos_name(library: Any, eos: tuple[int, ...], name: str | None) -> str | None:
    """The tokenizer's end-of-text token if it ends generated texts, else the first special token that does."""
    special = {i: token.content for i, token in library.get_added_tokens_decoder().items() if token.special}
    names = [special[i] for i in eos if i in special]
    if name in names or (not eos and name in special.values()):
        return name
    return names[0] if names else None


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """The values of a field, which holds none, one or several."""
    return () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
