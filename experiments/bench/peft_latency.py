"""Inference latency of PEFT methods: greedy decoding at batch 1, as ratios to the base model.

  python -m experiments.bench.peft_latency       writes peft_latency.json and the tables of peft.md (docs/measurements)
  taskset -c 0 python -m experiments.bench.peft_latency       on one core, where CPU time is the time on an idle machine

The models have random parameters and the shapes of GPT-2 small and nanoGPT's "baby". The methods are those of
configs/gpt/tune.py and adapters of 64 units. Each contender generates the same number of tokens, including prefill.
Rounds alternate their order (A B C, then C B A) in one process. A ratio is the median over rounds of paired ratios,
with quartiles; above 1.00 the method is slower than the base. Merged LoRA and (IA)^3 run the base's program with other
parameters. A second base model shows the noise.
"""

import os
import sys
import time
import types
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments.bench.peft_tables import into_page, latency_table
from experiments.bench.shapes import SHAPES
from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local

JSON = flags.DEFINE_string("json", "docs/measurements/peft_latency.json", "JSON file to write.")
PAGE = flags.DEFINE_string("page", "docs/measurements/peft.md", "Page to write the tables into; empty: none.")
WHICH = flags.DEFINE_list("shapes", ["gpt2", "baby"], f"Shapes to measure, of {', '.join(SHAPES)}.")
ONLY = flags.DEFINE_list("methods", None, "Methods to measure, by their names in the table. Default: all.")
ROUNDS = flags.DEFINE_integer("rounds", 11, "Number of rounds; each times every contender once.", lower_bound=1)
PROMPT = flags.DEFINE_integer("prompt", 16, "Number of prompt tokens.", lower_bound=1)
NEW = flags.DEFINE_integer("new", 32, "Number of new tokens.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 0.5, "Minimum seconds per turn.", lower_bound=0.0)

AGAIN = "base, again"


def main() -> None:
    results = {}
    for name in WHICH.value:
        if name not in SHAPES or name == "bert":
            raise UserError(
                f"--shapes={name}: no such decoder; expected one or more of {', '.join(set(SHAPES) - {'bert'})}"
            )
        results[name] = measured(contenders(SHAPES[name]), ROUNDS.value, SECONDS.value, say)
        print(f"\n{name}\n{latency_table(results[name])}", flush=True)
    try:
        local(JSON.value).write_text(strict_json.dumps(results, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"--json={JSON.value}: cannot be written ({e.strerror})") from None
    if PAGE.value:
        text = "\n\n".join(f"{name}:\n\n{latency_table(result)}" for name, result in results.items())
        into_page(PAGE.value, "peft_latency", text)
    print(f"\nwritten: {', '.join(filter(None, (JSON.value, PAGE.value)))}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def contenders(shape: dict[str, int]) -> dict[str, Callable[[], Any]]:
    """Name -> generation call: the base twice, each method unmerged, and LoRA and (IA)^3 merged."""
    import jax

    from configs.gpt.tune import METHODS
    from jaxnlp.peft.adapter import HOULSBY, PFEIFFER, Adapter
    from jaxnlp.training.step.program import build
    from jaxnlp.trees import merge

    methods = {
        "LoRA": METHODS["lora"],
        "adapters (Houlsby)": Adapter(targets=HOULSBY, bottleneck=64),
        "adapters (Pfeiffer)": Adapter(targets=PFEIFFER, bottleneck=64),
        "(IA)^3": METHODS["ia3"],
        "prefix": METHODS["prefix"],
    }
    base = build(experiment(shape, None), jax.devices()[:1])
    params = base.init().params
    calls = {"base": writer(base, params), AGAIN: writer(base, params)}
    for name in ONLY.value or methods:
        if name not in methods:
            raise UserError(f"--methods={name}: no such method; expected one or more of {', '.join(methods)}")
        method = methods[name]
        program = build(experiment(shape, method), jax.devices()[:1])
        assert program.tuning is not None
        tuned = moved(program.tuning.init(jax.random.key(0), params))
        calls[name] = writer(program, merge(params, tuned))
        if name in ("LoRA", "(IA)^3"):
            calls[f"{name}, merged"] = writer(base, program.tuning.merge(params, tuned))
    return calls


def experiment(shape: dict[str, int], tuning: Any) -> Any:
    from jaxnlp.data.pipeline import DataConfig
    from jaxnlp.data.tokenizer import Bytes
    from jaxnlp.models.gpt import GPTConfig
    from jaxnlp.training.experiment import Experiment

    model = GPTConfig(
        vocab_size=shape["vocab"],
        max_length=max(shape["length"], PROMPT.value + NEW.value + 64),
        num_layers=shape["layers"],
        num_heads=shape["heads"],
        embed_dim=shape["dim"],
    )
    data = DataConfig(seq_len=shape["length"], batch_size=1, attend_across_documents=True, tokenizer=Bytes())
    return Experiment(model=model, data=data, peft=tuning)


def moved(tuned: Any) -> Any:
    """Adds noise to adapter parameters, since at their initial values the model equals the base."""
    import jax

    leaves, tree = jax.tree.flatten(tuned)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([x + 0.01 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def writer(program: Any, params: Any) -> Callable[[], list[int]]:
    """A function that generates NEW tokens after a prompt and returns them."""
    import numpy as np

    from jaxnlp.inference.bound_model import make_generator

    # The end-of-text token is the last id and is never generated, so all texts have the same length.
    last = program.experiment.model.vocab_size - 1
    generator = make_generator(program.bind(types.SimpleNamespace(eos_id=last, vocab_size=last)))
    prompt = np.random.default_rng(0).integers(0, last, PROMPT.value - 1).tolist()  # after the end-of-text token

    def write() -> list[int]:
        (row,) = generator(params, [prompt], NEW.value)
        assert len(row) == NEW.value
        return row

    return write


def measured(
    calls: dict[str, Callable[[], Any]], rounds: int, seconds: float, log: Callable[[str], Any]
) -> dict[str, Any]:
    """Wall-clock and CPU seconds (over all cores) per call of each contender, one value per round."""
    counts: dict[str, int] = {}
    for name, call in calls.items():
        log(f"compiling {name}")
        call()
        start_time = time.perf_counter()
        call()
        counts[name] = max(1, round(seconds / (time.perf_counter() - start_time)))
    walls, cpus = ({name: [] for name in calls} for _ in range(2))
    for i in range(rounds):
        log(f"round {i + 1} of {rounds}")
        for name in list(calls) if i % 2 == 0 else list(calls)[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(counts[name]):
                calls[name]()
            walls[name].append((time.perf_counter() - wall) / counts[name])
            cpus[name].append((time.process_time() - cpu) / counts[name])
    sizes = {"prompt": PROMPT.value, "new": NEW.value, "cores": len(os.sched_getaffinity(0))}
    return {**sizes, "seconds": walls, "cpu seconds": cpus}


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.ONE)
