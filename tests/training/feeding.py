"""Prints which rows of the first batch this process feeds, and which examples it reads for them."""

import json

import jax
import numpy as np
from absl import flags

from jaxnlp import cli
from jaxnlp.data.pipeline import TrainBatches, open_split
from jaxnlp.data.text.packing import Packed, PackedReader
from jaxnlp.training.setup import prepare
from jaxnlp.training.step.program import build

CONFIG = cli.define_config()
OUT = flags.DEFINE_string("out", None, "Files to write: with the number of processes, and which this is.")


def main() -> None:
    experiment, tokenizer = prepare(CONFIG.value)
    program, read = build(experiment), []
    store = open_split(experiment.data, "train", tokenizer)
    experiment.data.task = Noted(read)
    batch = next(TrainBatches(store, experiment.data, rows=program.local_row_indices, tokenizer=tokenizer))
    total = jax.jit(lambda x: x.astype(float).sum())(program.shard_batch(batch)["tokens"])
    result = {
        "rows": program.local_row_indices.tolist(),
        "read": read,
        "tokens": batch["tokens"].tolist(),
        "sum": float(np.asarray(total)),
    }
    with open(f"{OUT.value}{jax.process_count()}.{jax.process_index()}", "w") as file:
        json.dump(result, file)


class Noted(Packed):
    """Packed examples that record the index of each one read."""

    def __init__(self, read: list[int]):
        self.read = read

    def open(self, store, tokenizer, config):
        reader = NotedReader(store, config.seq_len, config.attend_across_documents)
        reader.read = self.read
        return reader


class NotedReader(PackedReader):
    def __getitem__(self, index):
        self.read.append(int(index))
        return super().__getitem__(index)


if __name__ == "__main__":
    cli.run(main, __doc__)
