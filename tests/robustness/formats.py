"""The formats that jaxnlp reads: a small valid file of each, and the reader that users reach."""

import dataclasses
import functools
import gzip
import json
import pathlib
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnlp.errors import reading

TEXT = "Ein Text über Bäume.\nDie zweite Zeile.\n\nNoch ein Absatz, mit 12 Zahlen: 3.5 und 7e3.\n\n" * 3
ROWS = [
    {"text": f"Satz {i}, über \u4e2d", "label": i % 3, "score": i / 7, "nested": {"a": [i, None]}} for i in range(6)
]


@dataclasses.dataclass(frozen=True)
class Format:
    """write(folder): writes valid files. name: the file whose bytes are changed. read(folder): reads all of it.

    is_text: its words and numbers are changed as well as its bytes.
    """

    name: str
    write: Callable[[pathlib.Path], Any]
    read: Callable[[pathlib.Path], Any]
    is_text: bool = True


FORMATS: dict[str, Format] = {}


def mutated(data: bytes, random: np.random.Generator, is_text: bool) -> bytes:
    """The data with one to three changes, of bytes or, in text, of words and numbers."""
    for _ in range(random.integers(1, 4)):
        kinds = [_flip, _cut, _insert, _repeat, _end, *([_value, _value] if is_text else [])]
        data = kinds[random.integers(len(kinds))](data, random)
    return data


VALUES = (
    b"null",
    b"-1",
    b"0",
    b'"16"',
    b"1e999",
    b"NaN",
    b"[]",
    b"{}",
    b"true",
    b"99999999999999999999",
    b'""',
    b"1.5",
)


def _value(data: bytes, random: np.random.Generator) -> bytes:
    """A number, word or string replaced by a value of another kind."""
    places = list(re.finditer(rb'-?\d[\d.e+-]*|"[^"\n]*"|\b(?:true|false|null)\b', data))
    if not places:
        return data
    place = places[random.integers(len(places))]
    return data[: place.start()] + VALUES[random.integers(len(VALUES))] + data[place.end() :]


def _flip(data: bytes, random: np.random.Generator) -> bytes:
    if not data:
        return data
    i = random.integers(len(data))
    return data[:i] + bytes([random.integers(256)]) + data[i + 1 :]


def _span(data: bytes, random: np.random.Generator) -> tuple[int, int]:
    start = int(random.integers(len(data) + 1))
    return start, start + int(random.integers(1, 40))


def _cut(data: bytes, random: np.random.Generator) -> bytes:
    start, stop = _span(data, random)
    return data[:start] + data[stop:]


def _insert(data: bytes, random: np.random.Generator) -> bytes:
    start, stop = _span(data, random)
    return data[:start] + random.bytes(stop - start) + data[start:]


def _repeat(data: bytes, random: np.random.Generator) -> bytes:
    start, stop = _span(data, random)
    return data[:stop] + data[start:stop] * int(random.integers(1, 4)) + data[stop:]


def _end(data: bytes, random: np.random.Generator) -> bytes:
    return data[: random.integers(len(data) + 1)]


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


def _add(key: str, name: str, write: Any, read: Any, is_text: bool = True) -> None:
    FORMATS[key] = Format(name, write, read, is_text)


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
def _library(kind: str) -> Any:
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
        lambda f, kind=_kind: _library(kind).save(str(f / "tokenizer.json")),
        _hf_tokenizer,
    )


def _write_vocab(folder: pathlib.Path) -> None:
    _library("bpe").model.save(str(folder))


_add("vocab.json", "vocab.json", _write_vocab, _hf_tokenizer)
_add("merges.txt", "merges.txt", _write_vocab, _hf_tokenizer)


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
        return json.dumps(wrap(_library("bpe")).to_json())
    config = Bytes(special_tokens=("[MASK]",)) if kind == "bytes" else SentencePiece(vocab_size=300, train_bytes=1000)
    return json.dumps(config.build(texts, cache.data()).to_json())


for _kind in ("bytes", "sentencepiece", "huggingface"):
    _add(
        f"own tokenizer {_kind}",
        "tokenizer.json",
        lambda f, kind=_kind: (f / "tokenizer.json").write_text(_own(kind)),
        _run_tokenizer,
    )


def _model(family: str) -> Any:
    from jaxnlp.models.bert import BertConfig
    from jaxnlp.models.gpt import GPTConfig
    from jaxnlp.models.llama import LlamaConfig
    from jaxnlp.models.t5 import T5Config

    size: dict[str, Any] = {"vocab_size": 40, "embed_dim": 8, "num_layers": 1, "num_heads": 2}
    kinds = {"gpt2": GPTConfig, "bert": BertConfig, "llama": LlamaConfig, "t5": T5Config}
    return kinds[family](**size)


@functools.cache
def _params(family: str) -> Any:
    import jax

    from jaxnlp.sharding.functional import abstract_params

    config = _model(family)
    shapes, _ = abstract_params(config.build(), *config.example_inputs(1, 1))
    return config, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def _write_checkpoint(folder: pathlib.Path, family: str = "gpt2", **options: Any) -> None:
    from jaxnlp.interop.huggingface import save

    config, params = _params(family)
    save(folder, config, params, **options)


def _read_config(folder: pathlib.Path) -> Any:
    from jaxnlp.interop.huggingface import read_config

    return read_config(folder), _load_checkpoint(folder) if _every_16th(folder / "config.json") else None


def _every_16th(path: pathlib.Path) -> bool:
    """Whether a changed file is read in full too, which takes twenty times as long."""
    return zlib.crc32(path.read_bytes()) % 16 == 0


def _load_checkpoint(folder: pathlib.Path) -> Any:
    from jaxnlp.interop.huggingface import load

    return load(folder)


for _kind in ("gpt2", "bert", "llama", "t5"):
    _add(f"config.json {_kind}", "config.json", lambda f, kind=_kind: _write_checkpoint(f, kind), _read_config)
OTHER_FILES = {
    "generation_config.json": {"bos_token_id": 1, "eos_token_id": [0, 1], "pad_token_id": 0},
    "tokenizer_config.json": {"eos_token": {"content": "<unk>"}, "bos_token": "<unk>", "add_bos_token": True},
}


def _write_source(folder: pathlib.Path) -> None:
    _write_checkpoint(folder)
    _write_vocab(folder)
    for name, fields in OTHER_FILES.items():
        (folder / name).write_text(json.dumps(fields))


def _read_source(folder: pathlib.Path) -> Any:
    """As `jaxnlp.load` and `import` do, before they compile."""
    from jaxnlp.interop.huggingface import read_config, read_source
    from jaxnlp.interop.source_files import SourceFiles, read_files
    from jaxnlp.interop.text_ends import text_ends
    from jaxnlp.training.open_huggingface import default_experiment, wrapped

    if not any(_every_16th(folder / name) for name in (*OTHER_FILES, "config.json")):
        return text_ends(SourceFiles(read_files(folder), {}), _library("bpe"), "decoder")
    config, library = read_config(folder)
    source = read_source(folder)
    return wrapped(library, source, config.kind), default_experiment(config, library, source)


for _name in OTHER_FILES:
    _add(_name, _name, _write_source, _read_source)
_add("config.json of a source", "config.json", _write_source, _read_source)
_add("safetensors", "model.safetensors", _write_checkpoint, _load_checkpoint, False)
_add(
    "index",
    "model.safetensors.index.json",
    lambda f: _write_checkpoint(f, max_shard_bytes=1000),
    _load_checkpoint,
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


def _write_config(folder: pathlib.Path) -> None:
    from jaxnlp import config as configs
    from tests.experiments import small

    configs.save_json(small.get_config("corpus"), folder / "config.json")


def _read_run_config(folder: pathlib.Path) -> Any:
    from jaxnlp import config as configs

    experiment = configs.load_json(folder / "config.json")
    configs.check(experiment)
    return experiment


_add("run config.json", "config.json", _write_config, _read_run_config)


def _write_log(folder: pathlib.Path) -> None:
    rows = [{"step": i, "kind": "train", "time": 1.5, "loss": 2.5 / i, "tokens_per_second": 7.0} for i in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read_log(folder: pathlib.Path) -> Any:
    from jaxnlp.training.report import speed_line
    from jaxnlp.training.run_folder.metric_log import read_log

    return read_log(folder / "metrics.jsonl"), speed_line(folder, "peak")


_add("metrics.jsonl", "metrics.jsonl", _write_log, _read_log)


def _write_adapter(folder: pathlib.Path) -> None:
    import jax

    from jaxnlp.interop.adapters import save_adapter
    from jaxnlp.peft.lora import LoRA
    from jaxnlp.peft.tuning import attach

    config = _model("gpt2")
    tuning = attach(LoRA(rank=2), config.build(), *config.example_inputs(1, 1))
    tuned = tuning.init(jax.random.key(0), _params("gpt2")[1])
    save_adapter(folder, config, tuning, tuned)


def _read_adapter(folder: pathlib.Path) -> Any:
    from jaxnlp.interop import adapter_config
    from jaxnlp.interop.adapters import KINDS, load_adapter

    with reading(folder, "not an adapter"):  # `load_adapter` is the boundary
        adapter_config.read(folder / "adapter_config.json", KINDS)
    return load_adapter(folder, _model("gpt2")) if _every_16th(folder / "adapter_config.json") else None


def _read_adapter_tensors(folder: pathlib.Path) -> Any:
    from jaxnlp.interop.adapters import load_adapter

    return load_adapter(folder, _model("gpt2"))


_add("adapter_config.json", "adapter_config.json", _write_adapter, _read_adapter)
_add("adapter_model.safetensors", "adapter_model.safetensors", _write_adapter, _read_adapter_tensors, False)


def _write_peft(folder: pathlib.Path) -> None:
    import jax

    from jaxnlp.peft import files
    from jaxnlp.peft.lora import LoRA
    from jaxnlp.peft.tuning import attach

    config, params = _params("gpt2")
    tuning = attach(LoRA(rank=2), config.build(), *config.example_inputs(1, 1))
    files.save(folder / "x.safetensors", tuning, tuning.init(jax.random.key(0), params), params)


def _read_peft(folder: pathlib.Path) -> Any:
    from jaxnlp.peft import files

    return files.read(folder / "x.safetensors")


_add("peft file", "x.safetensors", _write_peft, _read_peft, False)


def _write_run(folder: pathlib.Path) -> None:
    from jaxnlp import config as configs
    from jaxnlp.data.tokenizer import ByteTokenizer
    from jaxnlp.training.run_folder.best import VALIDATION_LOSS
    from jaxnlp.training.run_folder.checkpoint import Writer
    from tests.experiments import small

    writer = Writer(folder, 2, 0, VALIDATION_LOSS)
    records = {
        "config": configs.to_dict(small.get_config("corpus")),
        "tokenizer": ByteTokenizer().to_json(),
        "data": {"position": 3, "corpus": "x"},
    }
    writer.save(1, {"params": {"w": np.ones(3, np.float32)}}, records, 2.5)
    writer.wait()
    writer.close()


def _read_run(folder: pathlib.Path) -> Any:
    """As a run opens it, and as an older version, which wrote no manifest, would."""
    from jaxnlp.training.run_folder.checkpoint import Reader

    reader = Reader(folder)
    reader.best()
    saved = reader.read(1)
    reader.newest(lambda step, error: None)
    return saved


_RECORDS = {
    "MANIFEST.json": True,
    "config/metadata": True,
    "tokenizer/metadata": True,
    "data/metadata": True,
    "versions/metadata": True,
    "metrics/metrics": True,
    "params/_METADATA": True,
}
for _name in _RECORDS:
    _add(f"checkpoint {_name}", f"checkpoints/1/{_name}", _write_run, _read_run)
