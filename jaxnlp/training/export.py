"""Exports a trained run in Hugging Face's layout."""

import pathlib
from typing import Any

from jaxnlp import distributed
from jaxnlp.data.huggingface_tokenizer import HuggingFaceTokenizer, wrap
from jaxnlp.data.pretrained_tokenizer import FILE, exported
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError
from jaxnlp.interop import huggingface
from jaxnlp.interop.adapters import body_alone, save_adapter, task_type
from jaxnlp.interop.source_files import SourceFiles, matches_tokenizer, source_library
from jaxnlp.paths import expanded
from jaxnlp.peft import files
from jaxnlp.training.load import Loaded
from jaxnlp.trees import select

MAX_SHARD_BYTES = int(5e9)


def save(run: Loaded, folder: pathlib.Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> bool:
    """Writes config.json, safetensors files and the tokenizer.

    A Hugging Face tokenizer is written as tokenizer.json; another as `pretrained_tokenizer.FILE`, for jaxnlp only.
    Tuned parameters are merged into their base. All processes must call it.

    The files of the checkpoint that the model began from are written again: without a step between, the export equals
    that checkpoint. Files that belong to its vocabulary are left out if the run has another tokenizer.

    Args:
        max_shard_bytes: maximum size of one safetensors file.

    Returns:
        whether tokenizer.json was written (False on every process but the first).

    Raises:
        UserError: a model that the layout does not support.
    """
    params, tuning, tokenizer = distributed.all_gather(run.params), run.program.tuning, run.saved.tokenizer
    if not distributed.first():
        return False
    if tuning is not None:
        params = tuning.merge(select(params, tuning.shapes), select(params, run.program.abstract.params))
    source, library = run.source, tokenizer.library if isinstance(tokenizer, HuggingFaceTokenizer) else None
    relation = "none" if source is None else _relation(source, tokenizer)
    files: dict[str, Any] = {FILE: None} if library is not None else {FILE: exported(tokenizer), "tokenizer.json": None}
    if source is not None:
        files |= _carried(source, relation)
    huggingface.save(
        folder,
        run.saved.experiment.model,
        params,
        None if relation == "same" else library,
        special_ids=special_ids(run) if relation == "none" else {},
        max_shard_bytes=max_shard_bytes,
        other_files=files,
        source=source,
    )
    return library is not None


def _relation(source: SourceFiles, tokenizer: Tokenizer) -> str:
    """How a run's tokenizer relates to that of the checkpoint that it began from: "same", "extended" or "none"."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return "none"
    try:
        theirs = wrap(source_library(source), tokenizer.eos_token)
    except UserError:
        return "none"
    return "same" if theirs.to_json() == tokenizer.to_json() else "extended" if tokenizer.extends(theirs) else "none"


def _carried(source: SourceFiles, relation: str) -> dict[str, bytes]:
    """The files of the checkpoint that an export writes again."""
    files = {name: content for name, content in source.files.items() if name != huggingface.CONFIG}
    if relation == "same":
        return files
    if relation == "extended":
        return {name: content for name, content in files.items() if name != "tokenizer.json"}
    return {name: content for name, content in files.items() if not matches_tokenizer(name)}


def save_tuned(run: Loaded, path: pathlib.Path, base_name: str | None = None, *, as_file: bool) -> list[str]:
    """Writes what a PEFT run tuned, without its base. All processes must call it.

    Args:
        base_name: hub id or folder where PEFT finds the base; None: the path that the run began from.
        as_file: writes all tuned parameters as one file for `peft.files.load`. Otherwise writes a folder in PEFT's
            layout, which has no place for a head.

    Returns:
        the parameters that were not written (a head's).

    Raises:
        UserError: a method or model that PEFT does not have, or a path that cannot be written.
    """
    params, tuning = distributed.all_gather(run.params), run.program.tuning
    assert tuning is not None
    if not distributed.first():
        return []
    tuned, experiment = select(params, run.program.abstract.params), run.saved.experiment
    if as_file:
        files.save(path, tuning, tuned, params)
        return []
    model, tuning, tuned, dropped = body_alone(experiment.model, tuning, tuned)
    source = base_name or (experiment.init_from and experiment.init_from.path)
    source = source and expanded(source)  # PEFT does not expand it
    save_adapter(path, model, tuning, tuned, base_name=source, task_type=task_type(model))
    return dropped


def special_ids(run: Loaded) -> dict[str, int]:
    """Ids of the tokens with which texts start and end; empty for a model that cannot generate."""
    model, tokenizer = run.saved.experiment.model, run.saved.tokenizer
    eos_id = tokenizer.eos_id
    if not model.can_generate:
        return {}
    if model.kind != "encoder-decoder":
        return {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    start_id = run.generator().start_ids[0]
    return {"decoder_start_token_id": start_id, "pad_token_id": start_id, "eos_token_id": eos_id}
