"""Creates a step-0 checkpoint from an imported model."""

import contextlib
import dataclasses
import sys
from typing import Any

import jax
import numpy as np

from jaxnlp import config as configs
from jaxnlp.data.huggingface_tokenizer import HuggingFace, wrap
from jaxnlp.data.pipeline import corpus_fingerprint, open_split
from jaxnlp.errors import UserError
from jaxnlp.paths import local
from jaxnlp.scratch import replacing
from jaxnlp.training.experiment import Experiment, resolve
from jaxnlp.training.open_huggingface import default_experiment
from jaxnlp.training.run_folder.checkpoint import Reader, Writer
from jaxnlp.training.run_folder.lock import open_workdir
from jaxnlp.training.step.program import build
from jaxnlp.training.step.state import saved_trees


def create_run(
    experiment: Experiment | None, model: Any, params: Any, tokenizer: Any, eos_token: str | None, workdir: str
) -> int:
    """Writes the checkpoint. With several processes all must call it.

    Args:
        experiment: data, optimizer and lengths of the run. None takes the defaults: windows of the model's maximum
            length, or 512 tokens if that is less, a learning rate for fine-tuning, and for an encoder-decoder the span
            corruption of T5.
        model, params, tokenizer: as `interop.huggingface.load` returns them.
        eos_token: the token that separates documents; None takes the first of the usual ones in the vocabulary.

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
    ours, folder = wrap(tokenizer, eos_token), local(workdir)
    if experiment is None:
        experiment = default_experiment(model, tokenizer)
    file = folder / "tokenizer.json"  # a copy, so that the run's config.json can be run again
    data = dataclasses.replace(experiment.data, tokenizer=HuggingFace(path=str(file), eos_token=eos_token))
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
        log = lambda text: print(text, file=sys.stderr, flush=True)
        store = open_split(e.data, "train", ours, log)
        open_split(e.data, "validation", ours, log)
        on_mesh = lambda leaf, x: jax.make_array_from_callback(x.shape, leaf.sharding, np.asarray(x).__getitem__)
        params = jax.tree.map(on_mesh, program.abstract.params, params)
        state = dataclasses.replace(program.init(), params=params)
        writer = Writer(folder, e.keep_last, e.keep_best)
        stack.callback(writer.close)
        data = {"position": 0, "corpus": corpus_fingerprint(store, e.data)}
        records = {"data": data, "config": configs.to_dict(e), "tokenizer": ours.to_json()}
        writer.save(0, saved_trees(state), records)
        writer.wait()
        if is_first:
            configs.save_json(e, folder / "config.json")
    return sum(x.size for x in jax.tree.leaves(params))
