"""Opens a model in Hugging Face's layout as a loaded run."""

import dataclasses
import pathlib
from typing import Any

import jax

from jaxnlp import config as configs
from jaxnlp.data.huggingface_tokenizer import wrap
from jaxnlp.data.pretrained_tokenizer import FILE, read_exported
from jaxnlp.data.text.span_corruption import SpanCorruption
from jaxnlp.errors import UserError
from jaxnlp.interop import huggingface
from jaxnlp.interop.tensor_files import hint, read_json
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.paths import expanded
from jaxnlp.sharding.rules import REPLICATED
from jaxnlp.training.experiment import Experiment, resolve
from jaxnlp.training.load import Loaded
from jaxnlp.training.run_folder.checkpoint import Saved
from jaxnlp.training.step.program import build

BATCH = 16  # records in one call of an evaluation, rounded up to a multiple of the devices


def open_huggingface(source: str | pathlib.Path) -> Loaded:
    """Loads a folder, or a hub id, onto this machine's devices.

    tokenizer.json sets how texts start and end. The model of a run with another tokenizer (`pretrained_tokenizer.FILE`)
    starts and ends texts as the run does.

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
    tokenizer = wrap(library) if exported is None else exported
    experiment = default_experiment(config, library if exported is None else None)
    experiment.data.batch_size = -(-BATCH // len(jax.devices())) * len(jax.devices())
    configs.check(experiment)
    experiment = resolve(experiment, tokenizer)
    program = build(experiment)
    params = huggingface.load(folder, mesh=program.mesh, rules=REPLICATED)[1]
    loaded, decoder = Loaded(Saved(0, experiment, tokenizer, {}, {}), program, params), config.kind == "decoder"
    if exported is not None and config.kind != "encoder-decoder":
        return loaded  # texts start with the end-of-text token, the default
    if exported is not None:
        start_id = read_json(folder / huggingface.CONFIG)["decoder_start_token_id"]
        return dataclasses.replace(loaded, decoder_start_ids=(start_id,))
    added_ids = tuple(library.encode("").ids)  # added by the post-processor: <s> before Llama's texts, </s> after T5's
    return dataclasses.replace(
        loaded,
        decoder_start_ids=added_ids if decoder else None,
        encoder_eos_ids=None if decoder else added_ids,
    )


def default_experiment(model: Any, library: Any) -> Experiment:
    """The default experiment of an imported model.

    Args:
        model: the model's config. library: its tokenizer, an object of the `tokenizers` library, or None.
    """
    experiment = Experiment(model=model)
    experiment.data.seq_len = min(512, model.length_limit or 512)
    experiment.optim.learning_rate = 1e-5
    if model.kind == "encoder-decoder":
        start = "<pad>" if library is not None and library.token_to_id("<pad>") is not None else None
        experiment.data.task, experiment.objective = SpanCorruption(decoder_start_token=start), Seq2Seq()
    return experiment
