"""Creates a step-0 checkpoint from an imported model."""

import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from jaxnlp import config as configs
from jaxnlp.data.huggingface_tokenizer import HuggingFace
from jaxnlp.errors import UserError
from jaxnlp.interop.source_files import FOLDER, TENSORS, SourceFiles
from jaxnlp.paths import local
from jaxnlp.scratch import UNCHANGED, move_files, replacing, scratch, write_errors
from jaxnlp.training.experiment import Experiment, resolve
from jaxnlp.training.feeds import UNREAD
from jaxnlp.training.open_huggingface import default_experiment, wrapped
from jaxnlp.training.run_folder.checkpoint import Reader, Writer
from jaxnlp.training.run_folder.lock import open_workdir
from jaxnlp.training.step.program import build
from jaxnlp.training.step.state import saved_trees


def create_run(
    experiment: Experiment | None,
    model: Any,
    params: Any,
    tokenizer: Any,
    eos_token: str | None,
    workdir: str,
    source: SourceFiles,
) -> int:
    """Writes the checkpoint. With several processes all must call it.

    The corpus is not read; the run's first training tokenizes it.

    Args:
        experiment: data, optimizer and lengths of the run. None takes the defaults: windows of the model's maximum
            length, or 512 tokens if that is less, a learning rate for fine-tuning, and for an encoder-decoder the span
            corruption of T5.
        model, params, tokenizer: as `interop.huggingface.load` returns them.
        eos_token: the token that separates documents; None takes the one of the checkpoint's files.
        source: the checkpoint's other files, which are copied to the run.

    Returns:
        the number of parameters.

    Raises:
        UserError: the model is not a language model, the folder already holds a run, or the config does not fit.
    """
    if not model.can_generate:
        raise UserError(
            f"{type(model).__name__}: not a language model, so it cannot start a run; "
            "fine-tune it with init_from=Pretrained(path=...), or read it with jaxnlp.interop.huggingface.load"
        )
    if Reader(workdir).steps():
        raise UserError(f"--workdir={workdir}: already holds a run; choose another folder")
    ours, folder = wrapped(tokenizer, source, model.kind, eos_token), local(workdir)
    experiment = experiment or default_experiment(model, tokenizer, source)
    file = folder / "tokenizer.json"  # a copy, so that the run's config.json can be run again
    data = dataclasses.replace(experiment.data, tokenizer=HuggingFace(path=str(file), eos_token=ours.eos_token))
    e = dataclasses.replace(experiment, model=model, data=data)
    configs.check(e)
    e = resolve(e, ours)
    is_first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        if is_first:
            stack.enter_context(open_workdir(folder))
        program = build(e)
        if is_first:
            with replacing(file) as new:
                new.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
            _copy(source, folder)
        on_mesh = lambda leaf, x: jax.make_array_from_callback(x.shape, leaf.sharding, np.asarray(x).__getitem__)
        params = jax.tree.map(on_mesh, program.abstract.params, params)
        state = dataclasses.replace(program.init(), params=params)
        writer = Writer(folder, e.keep_last, e.keep_best)
        stack.callback(writer.close)
        writer.save(0, saved_trees(state), _records(e, ours))
        writer.wait()
        if is_first:
            configs.save_json(e, folder / "config.json")
    return sum(x.size for x in jax.tree.leaves(params))


def _records(e: Experiment, tokenizer: Any) -> dict[str, Any]:
    return {"data": UNREAD, "config": configs.to_dict(e), "tokenizer": tokenizer.to_json()}


def _copy(source: SourceFiles, workdir: pathlib.Path) -> None:
    with write_errors(workdir, UNCHANGED), scratch(workdir) as new:
        source.write(new / FOLDER)
        move_files(new, workdir, last=f"{FOLDER}/{TENSORS}")
