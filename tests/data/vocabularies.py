"""Small tokenizers of each kind, of the library `tokenizers`."""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

SPACE = "\u2581"


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2's: each letter of a token's name is a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in enumerate([*letters, "\u00c3\u00a9", "\u0120\u00c3\u00a9"])}
    merges = [("\u00c3", "\u00a9"), ("\u0120", "\u00c3\u00a9")]
    made = tokenizers.Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_tokens(["\u65e5\u672c"])
    made.add_special_tokens(["<|endoftext|>"])
    return made


def byte_fallback(scheme: str = "normalizer", fallback: bool = True) -> tokenizers.Tokenizer:
    """As Llama 2's and Mistral's: a space before each text, and bytes for characters that the vocabulary lacks.

    scheme: what puts the space there: the normalizer Prepend, or the prepend_scheme of Metaspace.
    fallback: whether there are bytes.
    """
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256 * fallback)), SPACE]
    names += [*"acefht\u00e9", "th", "the", f"{SPACE}the", f"{SPACE}c", "at", f"{SPACE}cat", f"{SPACE}at"]
    merges = [("t", "h"), ("th", "e"), (SPACE, "the"), (SPACE, "c"), ("a", "t"), (f"{SPACE}c", "at"), (SPACE, "at")]
    vocab = {name: i for i, name in enumerate(names)}
    made = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=fallback, fuse_unk=True))
    if scheme == "normalizer":
        made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps if scheme == "never" else [*steps, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def word_pieces() -> tokenizers.Tokenizer:
    """As BERT's."""
    names = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "caf\u00e9", "##s", "\u00e9", "<0x0A>"]
    made = tokenizers.Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return made


def unigram(specials: tuple[str, ...] = ("</s>", "<extra_id_0>", "<extra_id_1>")) -> tokenizers.Tokenizer:
    """As T5's: no byte fallback."""
    names = ["<unk>", f"{SPACE}the", f"{SPACE}caf\u00e9", "\u00e9", "<0x0A>", SPACE, *"thecafs", f"{SPACE}me"]
    made = tokenizers.Tokenizer(models.Unigram([(name, -float(i)) for i, name in enumerate(names)], 0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.add_special_tokens([*specials])
    return made


def words(names: list[str], gaps: dict[str, int], specials: tuple[str, ...] = ("<|endoftext|>",)):
    """Words split at white space. gaps: further words and their ids. The library gives special tokens free ids."""
    vocab = {name: i for i, name in enumerate(["<unk>", *names])} | gaps
    made = tokenizers.Tokenizer(models.WordLevel(vocab, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens([*specials])
    return made


def with_gaps(kind: str) -> tokenizers.Tokenizer:
    """A vocabulary with gaps whose special token is in the vocabulary itself, after the gaps.

    kind: "WordLevel", "BPE" or "WordPiece".
    """
    vocab = {"a": 0, "b": 1, "ab": 5, "</s>": 9, "<unk>": 3}
    kinds = {
        "WordLevel": lambda: models.WordLevel(vocab, "<unk>"),
        "BPE": lambda: models.BPE(vocab, [("a", "b")], unk_token="<unk>"),
        "WordPiece": lambda: models.WordPiece(vocab, unk_token="<unk>"),
    }
    made = tokenizers.Tokenizer(kinds[kind]())
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["</s>"])
    return made
