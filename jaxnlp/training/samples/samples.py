"""Samples of a finished run's model: a continued text, answers, or filled-in masks."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.data.pipeline import eval_batches
from jaxnlp.errors import UserError
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.inference.loop import replicate
from jaxnlp.inference.sampling import Sampling
from jaxnlp.training.samples.bilm import bilm_samples
from jaxnlp.training.samples.seq2seq import seq2seq_samples
from jaxnlp.training.samples.tasks import task_samples

MASKED_SHOWN = 600  # characters


def sample(program: Any, params: Any, tokenizer: Any, store: Any) -> list[str]:
    """Lines to print: text that the model generates, or predictions on the validation split; empty for other models.

    With several processes all must call it: the model runs on the full mesh.
    """
    e = program.experiment
    if not e.sample_tokens:
        return []
    if e.data.task.output == "logits":
        return task_samples(program, params, tokenizer, store)
    if e.model.kind == "encoder-decoder":
        return seq2seq_samples(program, params, tokenizer, store)
    if e.model.can_generate:
        return _continuation(program, params, tokenizer)
    if "masked_positions" in e.data.task.shapes(e.data):
        return _filled_in(program, params, tokenizer, store)
    if "backward_targets" in e.data.task.shapes(e.data):
        return bilm_samples(program, params, tokenizer, store)
    return []


def _continuation(program: Any, params: Any, tokenizer: Any) -> list[str]:
    e = program.experiment
    generator = make_generator(program.bind(tokenizer))
    prompt = tokenizer.encode_batch([e.sample_prompt])[0]
    try:
        room = generator.fit_max_new_tokens([prompt], e.sample_tokens)
        ids = generator(params, [prompt], room, Sampling(temperature=0.8, top_p=0.95), seed=e.seed)[0]
    except UserError as error:
        return ["", f"no sample: {error}"]
    text = tokenizer.decode([*prompt, *ids])
    return ["", f"a sample, from {e.sample_prompt!r}:", "", *(f"  | {line}" for line in text.splitlines())]


def _filled_in(program: Any, params: Any, tokenizer: Any, store: Any) -> list[str]:
    """The longest row of the first validation batch, with masked words as [original > prediction]."""
    e = program.experiment
    batch = next(itertools.islice(eval_batches(store, e.data, 1, tokenizer=tokenizer), 1))

    def guess(params, batch):
        given = {name: batch[name] for name in ("token_type_ids", "segment_ids", "masked_positions")}
        return replicate(jnp.argmax(program.apply(params, batch["tokens"], **given)["masked_lm"], -1))

    local = {name: x[program.local_row_indices] for name, x in batch.items()}
    with program.context(any_length=True):
        guesses = np.asarray(jax.jit(guess)(params, program.shard_batch(local)))
    row = int(np.argmax(batch["segment_ids"].sum(1)))
    wanted, found = batch["targets"][row], guesses[row]
    at = {int(p): k for k, p in enumerate(batch["masked_positions"][row]) if batch["weights"][row, k] > 0}
    pieces, told = tokenizer.token_bytes(), []
    for place in range(int(batch["segment_ids"][row].sum())):
        k = at.get(place)
        if k is None:
            told.append(_show(pieces, int(batch["tokens"][row, place])))
        else:
            told.append(f"[{_word(pieces, int(wanted[k]))} > {_word(pieces, int(found[k]))}]")
    text = "".join(told)[:MASKED_SHOWN]
    right = sum(wanted[k] == found[k] for k in at.values())
    head = f"a validation text, masked words as [what stood there > the model's guess], {right} of {len(at)} right:"
    return ["", head, "", *(f"  | {line}" for line in text.splitlines())]


def _show(pieces: list[bytes | None], token: int) -> str:
    piece = pieces[token]
    return " | " if piece is None else piece.decode(errors="replace")


def _word(pieces: list[bytes | None], token: int) -> str:
    """A token's text without surrounding spaces; for whitespace, its repr."""
    text = _show(pieces, token)
    return text.strip() or repr(text)
