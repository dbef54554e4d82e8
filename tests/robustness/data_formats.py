"""Texts, records, tokenizers and stores: a small valid file of each, and the reader that users reach."""

import functools
import gzip
import json
import pathlib
from collections.abc import Callable
from typing import Any

from tests.robustness.formats import Format

TEXT = "Ein Text über Bäume.\nDie zweite Zeile.\n\nNoch ein Absatz, mit 12 Zahlen: 3.5 und 7e3.\n\n" * 3
ROWS = [
    {"text": f"Satz {i}, über \u4e2d", "label": i % 3, "score": i / 7, "nested": {"a": [i, None]}} for i in range(6)
]
FORMATS: dict[str, Format] = {}


def _add(key: str, name: str, write: Any, read: Any, is_text: bool = True) -> None:
    FORMATS[key] = Format(name, write, read, is_text)


def _jsonl() -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def _documents(name: str, **fields: Any) -> Callable[[pathlib.Path], Any]:
    def read(folder: pathlib.Path) -> Any:
        from jaxnlp.data.text.sources import Files

        return list(Files(train=str(folder / name), **fields).documents("train"))

    return read


def _records(name: str) -> Callable[[pathlib.Path], Any]:
    def read(folder: pathlib.Path) -> Any:
        from jaxnlp.data.records import Records

        return list(Records(train=str(folder / name)).records("train"))

    return read


def _table(folder: pathlib.Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "x.parquet", compression="none")


def _zst(folder: pathlib.Path) -> None:
    import zstandard

    (folder / "x.jsonl.zst").write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(_jsonl().encode()))


CSV = "text,label\n" + "".join(f'"Satz {i}, ""über""",{i}\n' for i in range(6))
for _document in ("paragraph", "line", "file"):
    _add(
        f"text by {_document}",
        "x.txt",
        lambda f: (f / "x.txt").write_text(TEXT),
        _documents("x.txt", document=_document),
    )
_add(
    "text.gz",
    "x.txt.gz",
    lambda f: (f / "x.txt.gz").write_bytes(gzip.compress(TEXT.encode())),
    _documents("x.txt.gz"),
    False,
)
_add("jsonl", "x.jsonl", lambda f: (f / "x.jsonl").write_text(_jsonl()), _documents("x.jsonl"))
_add("jsonl.zst", "x.jsonl.zst", _zst, _documents("x.jsonl.zst"), False)
_add("parquet", "x.parquet", _table, _documents("x.parquet"), False)
_add("records jsonl", "x.jsonl", lambda f: (f / "x.jsonl").write_text(_jsonl()), _records("x.jsonl"))
_add("records csv", "x.csv", lambda f: (f / "x.csv").write_text(CSV), _records("x.csv"))
TSV = "text\tlabel\n" + "".join(f"Satz {i} über\t{i}\n" for i in range(6))
_add("records tsv", "x.tsv", lambda f: (f / "x.tsv").write_text(TSV), _records("x.tsv"))
_add("records parquet", "x.parquet", _table, _records("x.parquet"), False)


def _use(tokenizer: Any) -> Any:
    """What every program asks of a tokenizer."""
    ids = tokenizer.encode_batch(["Ein Text über 12 Bäume", "<s>", ""])
    return tokenizer.token_bytes(), ids, [tokenizer.decode(row) for row in ids], tokenizer.to_json()


@functools.cache
def library(kind: str) -> Any:
    """A tokenizer of the `tokenizers` library, trained on TEXT."""
    import tokenizers as t

    pre = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<|endoftext|>", "<unk>"]
    models = {
        "bpe": (t.models.BPE(), t.trainers.BpeTrainer(vocab_size=300, special_tokens=specials, show_progress=False)),
        "wordpiece": (
            t.models.WordPiece(unk_token="<unk>"),
            t.trainers.WordPieceTrainer(vocab_size=90, special_tokens=specials, show_progress=False),
        ),
        "unigram": (
            t.models.Unigram(),
            t.trainers.UnigramTrainer(vocab_size=60, special_tokens=specials, unk_token="<unk>", show_progress=False),
        ),
    }
    model, trainer = models[kind]
    tokenizer = t.Tokenizer(model)
    tokenizer.pre_tokenizer = pre if kind == "bpe" else t.pre_tokenizers.Whitespace()
    tokenizer.decoder = {"bpe": t.decoders.ByteLevel(), "wordpiece": t.decoders.WordPiece()}.get(kind)
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


def _hf_tokenizer(folder: pathlib.Path) -> Any:
    from jaxnlp.data.huggingface_tokenizer import HuggingFace

    return _use(HuggingFace(path=str(folder)).build(list, folder))


for _kind in ("bpe", "wordpiece", "unigram"):
    _add(
        f"tokenizer.json {_kind}",
        "tokenizer.json",
        lambda f, kind=_kind: library(kind).save(str(f / "tokenizer.json")),
        _hf_tokenizer,
    )


def write_vocab(folder: pathlib.Path) -> None:
    library("bpe").model.save(str(folder))


_add("vocab.json", "vocab.json", write_vocab, _hf_tokenizer)
_add("merges.txt", "merges.txt", write_vocab, _hf_tokenizer)


def _run_tokenizer(folder: pathlib.Path) -> Any:
    from jaxnlp.data.pipeline import read_tokenizer

    return _use(read_tokenizer(folder / "tokenizer.json"))


@functools.cache
def _own(kind: str) -> str:
    from jaxnlp.data.huggingface_tokenizer import wrap
    from jaxnlp.data.tokenizer import Bytes, SentencePiece
    from tests import cache

    texts = lambda: [TEXT]
    if kind == "huggingface":
        return json.dumps(wrap(library("bpe")).to_json())
    config = Bytes(special_tokens=("[MASK]",)) if kind == "bytes" else SentencePiece(vocab_size=300, train_bytes=1000)
    return json.dumps(config.build(texts, cache.data()).to_json())


for _kind in ("bytes", "sentencepiece", "huggingface"):
    _add(
        f"own tokenizer {_kind}",
        "tokenizer.json",
        lambda f, kind=_kind: (f / "tokenizer.json").write_text(_own(kind)),
        _run_tokenizer,
    )


def _write_store(folder: pathlib.Path, format: str) -> None:
    from jaxnlp.data.text.store import build_store
    from jaxnlp.data.tokenizer import ByteTokenizer

    build_store(folder / "s", [TEXT, TEXT], ByteTokenizer(), split="train", source_fingerprint="x", format=format)


def _read_store(folder: pathlib.Path) -> Any:
    from jaxnlp.data.text.store import TokenStore

    store = TokenStore(folder / "s")
    return store.read(0, len(store)), list(store.documents()), store.description, store.bytes_per_token


_add("store meta.json", "s/meta.json", lambda f: _write_store(f, "memmap"), _read_store)
_add("store tokens.bin", "s/tokens.bin", lambda f: _write_store(f, "memmap"), _read_store, False)
_add(
    "store array_record",
    "s/tokens.array_record-00000",
    lambda f: _write_store(f, "array_record"),
    _read_store,
    False,
)
