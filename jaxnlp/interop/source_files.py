"""What the files of a checkpoint in Hugging Face's layout hold besides the parameters.

`config.json` has fields that our configs lack (`max_position_embeddings` of a Llama, several end-of-text tokens), and
other files hold the settings of generation, the chat template and licences. An import copies all of them to the run's
folder `huggingface`, and an export writes them again: without a step between, both folders hold the same.
"""

import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxnlp import strict_json
from jaxnlp.data.huggingface_tokenizer import byte_level_bpe, never_cut
from jaxnlp.errors import UserError, reading
from jaxnlp.interop.tensor_files import INDEX, SHARD, SINGLE
from jaxnlp.paths import local

FOLDER = "huggingface"
"""The folder of a run that holds the files."""
TENSORS = "jaxnlp_tensors.json"
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
OF_TOKENIZER = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "*.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    GENERATION,
)
OF_SENTENCE_ENCODER = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "[0-9]_*/config.json",
)
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
DOCUMENTS = ("LICENSE", "NOTICE", "README", "USE_POLICY")
"""The beginnings of the names of a checkpoint's documents."""
CARRIED = (CONFIG, *OF_TOKENIZER, *OF_SENTENCE_ENCODER, "preprocessor_config.json", *(f"{name}*" for name in DOCUMENTS))
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """The files of a checkpoint.

    files: contents by path in the folder, as "config.json" or "additional_chat_templates/rag.jinja".
    tensors: {name in the family's table: (name in the checkpoint, dtype in safetensors' spelling, as "BF16")}.
    """

    files: Mapping[str, bytes]
    tensors: Mapping[str, tuple[str, str]]

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object; empty if there is no such file. Raises UserError if the file does not hold one."""
        if name not in self.files:
            return {}
        try:
            value = json.loads(self.files[name])
        except (ValueError, RecursionError) as e:
            raise UserError(f"{name}: invalid JSON ({e})") from None
        if not isinstance(value, dict):
            raise UserError(f"{name}: expected a JSON object, got {type(value).__name__}")
        return value

    def text(self, name: str) -> str:
        """The text of a file. Raises UserError if it is not UTF-8."""
        with reading(name, "not UTF-8 text"):
            return self.files[name].decode()

    def write(self, folder: pathlib.Path) -> None:
        """Writes the files to a folder, for `read_saved`. Raises OSError if they cannot be written."""
        text = strict_json.dumps({name: list(place) for name, place in self.tensors.items()}, indent=0)
        for name, content in {**self.files, TENSORS: text.encode()}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


def read_files(folder: pathlib.Path) -> dict[str, bytes]:
    """The contents of the files that are carried, by path in the folder."""
    paths = sorted({path for pattern in CARRIED for path in folder.glob(pattern) if path.is_file()})
    with reading(folder, "a file of it cannot be read"):
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def own_files(folder: pathlib.Path, source: SourceFiles | None) -> list[str]:
    """The names of the files that a new checkpoint in this folder removes, if they exist: the weights of the present
    one, and if the new one has a source, the files of that and those of every tokenizer. No pattern: a user's files
    may match it.
    """
    shards = sorted(path.name for path in folder.glob("model-*.safetensors") if re.fullmatch(SHARD, path.name))
    if source is None:
        return [SINGLE, INDEX, *shards]
    tokenizer = [name for name in (*OF_TOKENIZER, *OF_SENTENCE_ENCODER, *SENTENCEPIECE) if "*" not in name]
    return [SINGLE, INDEX, *shards, *tokenizer, *(name for name in source.files if not name.startswith(DOCUMENTS))]


def read_saved(workdir: pathlib.Path) -> SourceFiles | None:
    """The files of the checkpoint that a run began from; None if it was not imported."""
    folder = workdir / FOLDER
    if not (folder / TENSORS).is_file():
        return None
    with reading(folder / TENSORS, "damaged"):
        tensors = {name: (str(a), str(b)) for name, (a, b) in json.loads((folder / TENSORS).read_text()).items()}
    return SourceFiles(read_files(folder), tensors)


def source_library(source: SourceFiles) -> Any:
    """The checkpoint's tokenizer, an object of the `tokenizers` library. Raises UserError if it cannot be read."""
    import tokenizers

    if TOKENIZER in source.files:
        with reading(TOKENIZER, "not a tokenizer of the library tokenizers, or damaged"):
            return never_cut(tokenizers.Tokenizer.from_str(source.text(TOKENIZER)))
    with reading("vocab.json", "not a vocabulary with merges.txt, or damaged"), tempfile.TemporaryDirectory() as folder:
        source.write(local(folder))
        return byte_level_bpe(local(folder))


def matches_tokenizer(name: str) -> bool:
    """Whether a file belongs to the checkpoint's vocabulary: it means nothing with another tokenizer."""
    return any(pathlib.PurePath(name).match(pattern) for pattern in OF_TOKENIZER)


def merged_config(source: Mapping[str, Any], read: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of config.json for a model that began from a checkpoint.

    Args:
        source: the checkpoint's config.json. read: what we write for the model as it was read. ours: what we write for
            the model as it is now. The fields of the last that differ have changed.
    """
    changed = {field: value for field, value in ours.items() if field not in read or read[field] != value}
    return {**source, **changed}


def exact_dtypes(source: SourceFiles, arrays: Mapping[str, list[np.ndarray]]) -> dict[str, np.dtype] | None:
    """The dtype of each tensor in the checkpoint, if all hold the present values exactly; None otherwise.

    Args:
        arrays: the parameters of each tensor, by its name in the family's table.
    """
    if not arrays.keys() <= source.tensors.keys():
        return None
    dtypes = {name: DTYPES.get(source.tensors[name][1]) for name in arrays}
    for name, dtype in dtypes.items():
        if dtype is None or not all(_holds(dtype, x) for x in arrays[name]):
            return None
    return {name: dtype for name, dtype in dtypes.items() if dtype is not None}


def _holds(dtype: np.dtype, x: np.ndarray) -> bool:
    with np.errstate(over="ignore"):
        return x.dtype == dtype or np.array_equal(x.astype(dtype).astype(x.dtype), x, equal_nan=True)
