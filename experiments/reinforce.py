"""REINFORCE on a toy reward: a small GPT learns to write vowels. An example of a custom training loop.

  python -m experiments.reinforce --workdir=runs/reinforce

Each step samples texts with the current weights, scores them, and increases the log-probability of those that score
above the mean of the batch (Williams 1992). After an interruption, the same command resumes with bit-identical results.

Shape legend: B batch, T length, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxnlp import cli, runtime

if __name__ == "__main__":
    runtime.configure_jax()  # before jax is imported

import jax
import numpy as np
from absl import flags

from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.errors import UserError
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.sampling import Sampling
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.losses import token_nll
from jaxnlp.objectives.causal_lm import CausalLM
from jaxnlp.objectives.objective import Objective
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.feeds import Batch, Feed
from jaxnlp.training.run_folder.run_folder import RunFolder
from jaxnlp.training.setup import prepare
from jaxnlp.training.step.program import Program, build
from jaxnlp.training.step.state import TrainState, from_saved_trees, saved_trees

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, for checkpoints and logs. A run in it is resumed.")
STEPS = flags.DEFINE_integer("num_steps", 200, "Number of training steps.")
CHECKPOINT = flags.DEFINE_integer("checkpoint_every", 50, "Steps between checkpoints.")


@dataclasses.dataclass(kw_only=True)
class PolicyGradient(Objective):
    """The negative log-likelihood of each sampled token, weighted by the advantage of its text."""

    def loss(self, apply: Callable, params: Any, batch: dict[str, jax.Array], key: jax.Array | None):
        logits_BTV = apply(params, batch["tokens"], key=key)
        nll_BT = token_nll(logits_BTV, batch["targets"], "vocab")[0] * batch["weights"]
        return (batch["advantages"][:, None] * nll_BT).sum(), batch["weights"].sum(), {"entropy": nll_BT.sum()}


def reward(text: bytes) -> float:
    """The fraction of vowels in a text."""
    return sum(byte in b"aeiou" for byte in text) / max(1, len(text))


class Rollouts(Feed):
    """Texts sampled from the current policy. The seed is the step, so the feed has no state to save."""

    def __init__(self, program: Program, generator: Generator):
        self._program, self._generator, self._data = program, generator, program.experiment.data
        self.mean_reward = 0.0

    def next(self, state: TrainState) -> Batch:
        size, length, eos_id = self._data.batch_size, self._data.seq_len, self._generator.eos_id
        texts = self._generator(state.all_params, [[]] * size, length, Sampling(temperature=1.0), int(state.step))
        targets_BT = np.full((size, length), eos_id, np.int32)
        weights_BT = np.zeros((size, length), np.float32)
        for row, ids in enumerate(texts):
            targets_BT[row, : len(ids)] = ids
            weights_BT[row, : len(ids) + 1] = 1  # the end of a text is sampled too
        tokens_BT = np.concatenate([np.full((size, 1), eos_id, np.int32), targets_BT[:, :-1]], axis=1)
        rewards_B = np.asarray([reward(bytes(ids)) for ids in texts], np.float32)
        self.mean_reward = float(rewards_B.mean())
        advantages_B = rewards_B - self.mean_reward
        batch = {"tokens": tokens_BT, "targets": targets_BT, "weights": weights_BT, "advantages": advantages_B}
        return Batch(self._program.shard_batch({name: x[self._program.local_row_indices] for name, x in batch.items()}))


def get_experiment() -> Experiment:
    return Experiment(
        model=GPTConfig(max_length=32, num_layers=2, num_heads=2, embed_dim=32),
        data=DataConfig(tokenizer=Bytes(), seq_len=24, batch_size=32),
        objective=PolicyGradient(),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=5, weight_decay=0.0),
        num_steps=STEPS.value,
        checkpoint_every=CHECKPOINT.value,
    )


def main() -> None:
    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected a folder for the run, for example runs/reinforce")
    e, tokenizer = prepare(get_experiment())
    with RunFolder(WORKDIR.value) as run:
        program = build(e)
        feed = Rollouts(program, make_generator(program.bind(tokenizer)))
        policy = dataclasses.replace(e, objective=CausalLM())  # for experiments.generate and others
        records = {"config": configs.to_dict(policy), "tokenizer": tokenizer.to_json()}
        state = from_saved_trees(run.restore(saved_trees(program.init())))
        if run.saved_step is not None:
            feed.restore(run.record("data"), run.step)
        run.start(e.num_steps, e.log_every, e.keep_last)
        for _ in run.steps():
            state, metrics = program.step(state, feed.next(state).arrays)
            run.log({"reward": feed.mean_reward, "entropy": metrics["entropy"], "grad_norm": metrics["grad_norm"]})
            if run.due(e.checkpoint_every):
                run.save(saved_trees(state), {**records, "data": feed.state()})
        run.save(saved_trees(state), {**records, "data": feed.state()})
        run.info(f"next: {runtime.command('generate', runtime.option('workdir', WORKDIR.value))}")


if __name__ == "__main__":
    cli.run(main, __doc__)
