"""Samples of a finished encoder-decoder run: validation texts with their targets and the model's outputs."""

from typing import Any

import numpy as np

from jaxnlp.data.pipeline import eval_batches
from jaxnlp.data.text.sentinels import with_sentinels
from jaxnlp.inference.bound_model import make_generator

NUM_SHOWN = 4
WIDTH = 400  # characters of a text


def seq2seq_samples(program: Any, params: Any, tokenizer: Any, store: Any) -> list[str]:
    """Lines to print: a few rows of the split, with the model's outputs by greedy search.

    With several processes all must call it: the model runs on the full mesh.
    """
    e = program.experiment
    batch = next(iter(eval_batches(store, e.data, 1, tokenizer=tokenizer)))
    rows = [i for i in range(len(batch["inputs"])) if batch["weights"][i].sum() > 0]
    rows = rows[:: max(1, len(rows) // NUM_SHOWN)][:NUM_SHOWN]
    cut = lambda ids, there: _without_end(ids[np.flatnonzero(there)].tolist(), tokenizer.eos_id)
    sources = [cut(batch["inputs"][i], batch["input_segments"][i]) for i in rows]
    targets = [cut(batch["targets"][i], batch["weights"][i]) for i in rows]
    generator = make_generator(program.bind(tokenizer))
    room = generator.fit_max_new_tokens(sources, min(e.sample_tokens, batch["targets"].shape[1]))
    found = generator(params, sources, room)
    shown = with_sentinels(tokenizer)
    out = ["", "validation texts, their targets, and what the model says:"]
    for source, target, said in zip(sources, targets, found, strict=True):
        right = "right" if said == target else "model"
        out += ["", f"  | {_line(shown, source)}", f"  target {_line(shown, target)}"]
        out.append(f"  {right:6} {_line(shown, said)}")
    return out


def _without_end(ids: list[int], eos_id: int) -> list[int]:
    return ids[:-1] if ids and ids[-1] == eos_id else ids


def _line(tokenizer: Any, ids: list[int]) -> str:
    text = " ".join(tokenizer.decode(ids).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
