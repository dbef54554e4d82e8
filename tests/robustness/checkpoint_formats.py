"""Checkpoints, adapters and run folders: a small valid file of each, and the reader that users reach."""

import functools
import json
import pathlib
import zlib
from typing import Any

import numpy as np

from jaxnlp.errors import reading
from tests.robustness.data_formats import library, write_vocab
from tests.robustness.formats import Format

FORMATS: dict[str, Format] = {}


def _add(key: str, name: str, write: Any, read: Any, is_text: bool = True) -> None:
    FORMATS[key] = Format(name, write, read, is_text)


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
    write_vocab(folder)
    for name, fields in OTHER_FILES.items():
        (folder / name).write_text(json.dumps(fields))


def _read_source(folder: pathlib.Path) -> Any:
    """As `jaxnlp.load` and `import` do, before they compile."""
    from jaxnlp.interop.huggingface import read_config, read_source
    from jaxnlp.interop.source_files import SourceFiles, read_files
    from jaxnlp.interop.text_ends import text_ends
    from jaxnlp.training.open_huggingface import default_experiment, wrapped

    if not any(_every_16th(folder / name) for name in (*OTHER_FILES, "config.json")):
        return text_ends(SourceFiles(read_files(folder), {}), library("bpe"), "decoder")
    config, own_library = read_config(folder)
    source = read_source(folder)
    return wrapped(own_library, source, config.kind), default_experiment(config, own_library, source)


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


RECORDS = (
    "MANIFEST.json",
    "config/metadata",
    "tokenizer/metadata",
    "data/metadata",
    "versions/metadata",
    "metrics/metrics",
    "params/_METADATA",
)
for _name in RECORDS:
    _add(f"checkpoint {_name}", f"checkpoints/1/{_name}", _write_run, _read_run)
