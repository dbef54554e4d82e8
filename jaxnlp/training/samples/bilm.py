"""Samples of a finished run of a forward and a backward language model: each direction's prediction of a word."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.data.pipeline import eval_batches
from jaxnlp.inference.loop import replicate

NUM_SHOWN = 12  # words
WIDTH = 20  # characters of one


def bilm_samples(program: Any, params: Any, tokenizer: Any, store: Any) -> list[str]:
    """Words of the first window of the validation split that both directions predict, with the predictions.

    With several processes all must call it: the model runs on the full mesh.
    """
    batch = next(itertools.islice(eval_batches(store, program.experiment.data, 1, tokenizer=tokenizer), 1))

    def guess(params, batch):
        out = program.apply(params, batch["tokens"], segment_ids=batch["segment_ids"])
        return {way: replicate(jnp.argmax(out[way], -1)) for way in ("forward", "backward")}

    local = {name: x[program.local_row_indices] for name, x in batch.items()}
    with program.context(any_length=True):
        found = jax.tree.map(np.asarray, jax.jit(guess)(params, program.shard_batch(local)))
    # The word at t is predicted forward at t - 1 and backward at t + 1.
    words = batch["forward_targets"][0, :-2]
    both = (batch["forward_weights"][0, :-2] > 0) & (batch["backward_weights"][0, 2:] > 0)
    guesses = np.stack([words, found["forward"][0, :-2], found["backward"][0, 2:]], 1)[both]
    pieces = tokenizer.token_bytes()
    middle = guesses[max(0, len(guesses) - NUM_SHOWN) // 2 :][:NUM_SHOWN]
    rows = [[_show(pieces[token]) for token in row] for row in middle.tolist()]
    head = ["the word", "from before it", "from after it"]
    return [
        "",
        "words of the validation split, and what each direction guesses:",
        "",
        *("  | " + "".join(cell.ljust(WIDTH + 2) for cell in row).rstrip() for row in (head, *rows)),
    ]


def _show(piece: bytes | None) -> str:
    """A token's text without surrounding spaces; for whitespace, its repr."""
    if piece is None:
        return "(end)"
    text = piece.decode(errors="replace")
    return (text.strip() or repr(text))[:WIDTH]
