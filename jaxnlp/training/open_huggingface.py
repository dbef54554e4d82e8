"""Opens a model in Hugging Face's layout as a loaded run."""

import dataclasses
import pathlib
from typing import Any

import jax

from jaxnlp import config as configs
from jaxnlp.data.huggingface_tokenizer import HuggingFaceTokenizer, wrap
from jaxnlp.data.pretrained_tokenizer import FILE, read_exported
from jaxnlp.data.text.span_corruption import SpanCorruption
from jaxnlp.errors import UserError, reading
from jaxnlp.interop import huggingface
from jaxnlp.interop.config_defaults import with_defaults
from jaxnlp.interop.source_files import CONFIG, SourceFiles
from jaxnlp.interop.tensor_files import hint, read_json
from jaxnlp.interop.text_ends import text_ends
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.paths import expanded
from jaxnlp.sharding.rules import REPLICATED
from jaxnlp.training.experiment import Experiment, resolve
from jaxnlp.training.load import Loaded, with_source
from jaxnlp.training.run_folder.checkpoint import Saved
from jaxnlp.training.step.program import build

BATCH = 16  # records in one call of an evaluation, rounded up to a multiple of the devices


def open_huggingface(source: str | pathlib.Path) -> Loaded:
    """Loads a folder, or a hub id, onto this machine's devices.

    The folder's files say how texts start and end. The model of a run with another tokenizer
    (`pretrained_tokenizer.FILE`) starts and ends texts as the run does.

    Raises:
        UserError: no such folder, an architecture that is not supported, or no tokenizer.
    """
    source = expanded(source)
    folder = pathlib.Path(source)
    if not folder.is_dir() and (source.startswith((".", "/", "runs/")) or source.count("/") > 1):
        raise UserError(
            f"load: {source}: no such folder; expected a run, a folder in Hugging Face's layout, or a hub id"
        )
    if folder.is_dir() and not (folder / huggingface.CONFIG).exists():
        neither = "has neither a checkpoint of a run nor a model in Hugging Face's layout"
        raise UserError(f"load: {source}: {neither}{hint(folder)}")
    folder = huggingface.local_folder(source)
    config, library = huggingface.read_config(folder)
    exported = read_exported(folder)
    if exported is None and library is None:
        raise UserError(
            f"load: {source}: has no tokenizer; expected tokenizer.json, {FILE}, or vocab.json and merges.txt"
        )
    source_files = huggingface.read_source(folder)
    tokenizer = wrapped(library, source_files, config.kind) if exported is None else exported
    experiment = default_experiment(config, library if exported is None else None, source_files)
    experiment.data.batch_size = -(-BATCH // len(jax.devices())) * len(jax.devices())
    configs.check(experiment)
    experiment = resolve(experiment, tokenizer)
    program = build(experiment)
    params = huggingface.load(folder, mesh=program.mesh, rules=REPLICATED)[1]
    loaded = Loaded(Saved(0, experiment, tokenizer, {}, {}), program, params)
    if exported is None:
        return with_source(loaded, source_files)
    if config.kind != "encoder-decoder":
        return loaded  # texts start with the end-of-text token, the default
    with reading(folder / huggingface.CONFIG, "field decoder_start_token_id is missing"):
        start_id = read_json(folder / huggingface.CONFIG)["decoder_start_token_id"]
    return dataclasses.replace(loaded, decoder_start_ids=(start_id,))


def wrapped(library: Any, source: SourceFiles, kind: str, eos_token: str | None = None) -> HuggingFaceTokenizer:
    """The tokenizer of a checkpoint.

    Args:
        library: an object of the `tokenizers` library. source: the checkpoint's files. kind: of the model's config.
        eos_token: the token that separates documents; None takes the one of the checkpoint's files, or the first of
            `EOS_TOKENS` in the vocabulary if they name none.
    """
    return wrap(library, eos_token or text_ends(source, library, kind).eos_name)


def default_experiment(model: Any, library: Any, source: SourceFiles) -> Experiment:
    """The default experiment of an imported model.

    Args:
        model: the model's config. library: its tokenizer, an object of the `tokenizers` library, or None.
        source: its files.
    """
    experiment = Experiment(model=model)
    trained_length = with_defaults(source.json(CONFIG)).get("max_position_embeddings")  # longer texts are allowed
    if trained_length is not None and not (type(trained_length) in (int, float) and 1 <= trained_length < 2**63):
        raise UserError(f"{CONFIG}: max_position_embeddings={trained_length!r}: expected a positive number")
    experiment.data.seq_len = min(int(x) for x in (512, model.length_limit, trained_length) if x)
    experiment.optim.learning_rate = 1e-5
    if model.kind == "encoder-decoder":
        start = "<pad>" if library is not None and library.token_to_id("<pad>") is not None else None
        experiment.data.task, experiment.objective = SpanCorruption(decoder_start_token=start), Seq2Seq()
    return experiment
