"""What a fine-tuned model says of records."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxnlp.data.source import Record
from jaxnlp.inference.loop import replicate

INPUTS = ("types", "segment_ids", "extract")


def answers(
    program: Any, params: Any, tokenizer: Any, records: Sequence[Record], examples: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """The task's answer to each record, in order; a batch at a time.

    Args:
        program: of the fine-tuned run. examples: what its task makes of the records, in their order.

    With several processes all must call it, with the same records, and take all of it.
    """
    e = program.experiment
    task, size = e.data.task, e.data.batch_size

    def logits(params: Any, batch: Any) -> jax.Array:
        given = {name: batch[name] for name in INPUTS if name in batch}
        return replicate(program.apply(params, batch["tokens"], **given)["logits"])

    run = jax.jit(logits)
    waiting: list[tuple[Any, np.ndarray]] = []
    for start in range(0, len(examples), size):
        rows: list[Any] = [*examples[start : start + size]]
        batch = task.collate(rows + [None] * (size - len(rows)), e.data.seq_len, tokenizer.separator)
        local = {name: x[program.local_row_indices] for name, x in batch.items()}
        with program.context(any_length=True):
            found = np.asarray(run(params, program.shard_batch(local)))
        for example, row in zip(rows, found, strict=False):
            if waiting and waiting[0][0].record != example.record:
                yield _answer(task, records, waiting)
                waiting = []
            waiting.append((example, row))
    if waiting:
        yield _answer(task, records, waiting)


def _answer(task: Any, records: Sequence[Record], rows: list[tuple[Any, np.ndarray]]) -> dict[str, Any]:
    found, logits = zip(*rows, strict=True)
    return task.decode(records[found[0].record], found, np.stack(logits))
