"""jaxnlp as a contender: `python -m experiments.bench.ours train|forward|decode|loop --shape=baby ...`."""

import argparse
import dataclasses
import pathlib
import tempfile
from typing import Any

from experiments.bench import harness
from experiments.bench.shapes import PREDICTED, SHAPES

parser = argparse.ArgumentParser()
parser.add_argument("what", choices=["train", "forward", "decode", "loop", "loop-step", "input"])
parser.add_argument("--shape", default="baby")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--predict", type=int, default=PREDICTED, help="masked positions per sequence of BERT")
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--prompt", type=int, default=32)
parser.add_argument("--new", type=int, default=128)
parser.add_argument("--beams", type=int, default=1)


def main() -> None:
    out = harness.protocol()
    a = parser.parse_args()
    from jaxnlp import runtime

    runtime.configure_jax()
    whats = {"train": train, "forward": forward, "decode": decode, "loop": loop, "loop-step": train, "input": read}
    whats[a.what](out, a)


def experiment(a):
    """nanoGPT's model (no biases, exact GELU) with AdamW and gradient clipping, in the selected shape."""
    from jaxnlp.data.pipeline import DataConfig
    from jaxnlp.data.tokenizer import Bytes
    from jaxnlp.models.gpt import GPTConfig
    from jaxnlp.nn.kernels import Blocked, Einsum
    from jaxnlp.nn.mlp import MLP
    from jaxnlp.nn.norms import LayerNorm
    from jaxnlp.nn.policy import Policy
    from jaxnlp.optim import OptimConfig
    from jaxnlp.training.experiment import Experiment

    s = SHAPES[a.shape]
    model = GPTConfig(
        vocab_size=s["vocab"],
        max_length=s["length"],
        num_layers=s["layers"],
        num_heads=s["heads"],
        embed_dim=s["dim"],
        use_bias=False,
        norm=LayerNorm(use_bias=False),
        mlp=MLP(activation="gelu"),
        attention=Blocked() if s["length"] > 64 else Einsum(),
        policy=Policy(matmul_dtype="bfloat16" if a.bf16 else None),
    )
    data = DataConfig(
        seq_len=s["length"], batch_size=s["batch"], attend_across_documents=True, tokenizer=Bytes(), prefetch_threads=0
    )
    optim = OptimConfig(learning_rate=1e-3, schedule="constant", weight_decay=0.1, b2=0.99)
    return Experiment(model=model, data=data, optim=optim, num_steps=10**9, eval_every=0, checkpoint_every=0)


def bert_experiment(a):
    """BERT-base with masked-language modelling only, and the same optimizer."""
    from jaxnlp.models.bert import BertConfig
    from jaxnlp.nn.policy import Policy
    from jaxnlp.objectives.masked_lm import MaskedLM

    s, e = SHAPES[a.shape], experiment(a)
    e.model = BertConfig(
        vocab_size=s["vocab"],
        max_length=s["length"],
        num_layers=s["layers"],
        num_heads=s["heads"],
        embed_dim=s["dim"],
        heads=("masked_lm",) if a.what == "train" else ("pooler",),
        dropout_rate=0.0,
        policy=Policy(matmul_dtype="bfloat16" if a.bf16 else None),
    )
    e.objective = MaskedLM()
    return e


def train(out, a) -> None:
    """The bare training step on batches that are already on the device."""
    import jax

    from jaxnlp.training.step.program import build

    e = bert_experiment(a) if a.shape == "bert" else experiment(a)
    if a.what == "loop-step":  # the vocabulary of the loop's model, which reads bytes
        e.model = dataclasses.replace(e.model, vocab_size=257)
    program = build(e, jax.devices()[:1])
    batches = jax.device_put(examples(e, a.predict), program.batch_sharding)
    current = {"state": program.init(), "metrics": None, "i": 0}

    def step():
        current["state"], current["metrics"] = program.step(current["state"], batches[current["i"] % 16])
        current["i"] += 1

    harness.serve(out, step, lambda: float(current["metrics"]["loss"]), info={"jax": jax.__version__})


def examples(e, predict: int) -> list[dict[str, Any]]:
    """16 batches of random tokens in the format of the experiment's objective."""
    import numpy as np

    random, B, T = np.random.default_rng(0), e.data.batch_size, e.data.seq_len
    tokens = random.integers(0, e.model.vocab_size, (16, B, T + 1)).astype(np.int32)
    if e.objective.reports_bits_per_byte:
        weights = np.ones((B, T), np.float32)
        return [{"tokens": t[:, :-1], "targets": t[:, 1:], "weights": weights} for t in tokens]
    places = np.sort(random.permuted(np.broadcast_to(np.arange(T, dtype=np.int32), (16, B, T)), axis=-1)[..., :predict])
    fixed = {"token_type_ids": np.zeros((B, T), np.int32), "segment_ids": np.ones((B, T), np.int32)}
    fixed |= {"weights": np.ones((B, predict), np.float32)}
    pairs = zip(tokens[..., :-1], places, strict=True)
    return [{"tokens": t, "masked_positions": p, "targets": np.take_along_axis(t, p, -1), **fixed} for t, p in pairs]


def forward(out, a) -> None:
    """The encoder and its pooler, on full rows with segment ids."""
    import jax

    from jaxnlp.training.step.program import build

    program = build(bert_experiment(a), jax.devices()[:1])
    params = program.init().params
    batches = jax.device_put(examples(program.experiment, a.predict), program.batch_sharding)
    jitted = jax.jit(
        lambda params, b: program.apply(
            params, b["tokens"], token_type_ids=b["token_type_ids"], segment_ids=b["segment_ids"]
        )
    )
    current: dict[str, Any] = {"i": 0}

    def step():
        current["out"] = jitted(params, batches[current["i"] % 16])
        current["i"] += 1

    with program.context():
        harness.serve(out, step, lambda: float(current["out"]["pooled"][0, 0]), info={"jax": jax.__version__})


def loop(out, a) -> None:
    """The full training loop of `experiments.train`: steps, reading, logging, progress and checks."""
    from jaxnlp.training.feeds import BatchFeed
    from jaxnlp.training.loops.supervised import SupervisedLoop, default_hooks
    from jaxnlp.training.run_folder.run_folder import RunFolder
    from jaxnlp.training.setup import set_up

    e = experiment(a)
    e.model = dataclasses.replace(e.model, vocab_size=257)
    with RunFolder(pathlib.Path(tempfile.mkdtemp())) as run_folder:
        setup = set_up(e, run_folder)
        feed = BatchFeed(setup.program, setup.stores["train"], setup.tokenizer)
        loop = SupervisedLoop(setup, run_folder, feed, default_hooks(e))
        steps = run_folder.steps(loop.stride)

        def step():
            next(steps)
            loop.train_step()

        harness.serve(out, step, lambda: float(loop.state.step), warmup=20)


def read(out, a) -> None:
    """The input pipeline alone: packed, shuffled batches of the standard-library corpus."""
    from jaxnlp.data.pipeline import TrainBatches, open_split, open_tokenizer

    e = experiment(a)
    e.data.attend_across_documents = False
    tokenizer = open_tokenizer(e.data)
    batches = TrainBatches(open_split(e.data, "train", tokenizer), e.data)
    harness.serve(out, lambda: next(batches), lambda: None)


def decode(out, a) -> None:
    """Greedy generation or beam search with a KV cache. One step generates `new` tokens for each prompt of a batch."""
    import types

    import jax
    import numpy as np

    from jaxnlp.inference.beam import BeamSearch, beam_search
    from jaxnlp.inference.bound_model import make_generator
    from jaxnlp.models.gpt import GPTConfig
    from jaxnlp.training.step.program import build

    s = SHAPES[a.shape]
    e = experiment(a)
    length = max(s["length"], a.prompt + a.new + 1)
    e.model = GPTConfig(
        vocab_size=s["vocab"], max_length=length, num_layers=s["layers"], num_heads=s["heads"], embed_dim=s["dim"]
    )
    program = build(e, jax.devices()[:1])
    params = program.init().params
    # The end-of-text token is the last id and is never generated, so all rows have the same length.
    tokenizer: Any = types.SimpleNamespace(eos_id=s["vocab"] - 1, vocab_size=s["vocab"] - 1)
    generator = make_generator(program.bind(tokenizer))
    prompts = np.random.default_rng(0).integers(0, s["vocab"] - 1, (a.batch, a.prompt - 1)).tolist()

    def step():
        if a.beams > 1:
            hypotheses = beam_search(generator, params, prompts, a.new, BeamSearch(num_beams=a.beams))
            rows = [best.ids for best, *_ in hypotheses]
        else:
            rows = generator(params, prompts, a.new)
        assert all(len(row) == a.new for row in rows)

    harness.serve(out, step, lambda: None, warmup=1, info={"jax": jax.__version__})


if __name__ == "__main__":
    main()
