"""Accuracy and cost of each PEFT method on a real task: configs/bert/tune_docstrings.py with three seeds.

  python -m experiments.bench.peft_quality            writes peft_quality.json and peft.md's table (docs/measurements)
  python -m experiments.bench.peft_quality --search   before: learning rates, on validation

Runs that are already in the JSON are skipped, so an interrupted benchmark resumes. Steps are timed again if --rounds
is larger than before. With the same seed, all methods start from the same parameters and read the same batches.

Accuracy is measured on the test split. Step time is the median over rounds in which every method has a turn. Memory is
the peak of the step by the compiler's analysis: parameters, optimizer state, a batch and temporaries
(`planning.planner.compiled_memory`).

The search trains with each rate in RATES at seed 0 for the first part of the run's schedule (--search_steps) and
selects the rate with the best validation accuracy. The config has the selected rates.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from experiments.bench.peft_tables import RATES, into_page, picture, quality_table, searched
from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local

JSON = flags.DEFINE_string("json", "docs/measurements/peft_quality.json", "JSON file to resume from and to write.")
OUT = flags.DEFINE_string("out", "docs/images/peft_quality.png", "PNG file to write.")
PAGE = flags.DEFINE_string("page", "docs/measurements/peft.md", "Page to write the tables into; empty: none.")
METHODS = flags.DEFINE_list("methods", None, "Methods of the config to measure. Default: all.")
FOLDER = flags.DEFINE_string("folder", "", "Folder of another encoder: a run, or Hugging Face's layout.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Number of runs per method.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", None, "Steps per run. Default: those of the config.", lower_bound=21)
ROUNDS = flags.DEFINE_integer("rounds", 9, "Number of timing rounds.", lower_bound=1)
TURN = flags.DEFINE_integer("turn", 4, "Steps per turn of the timing.", lower_bound=1)
SEARCH = flags.DEFINE_bool("search", False, "Search learning rates instead of measuring.")
SEARCH_STEPS = flags.DEFINE_integer("search_steps", 50, "Steps per run of the search.", lower_bound=1)

CONFIG = "configs/bert/tune_docstrings.py"
EVAL_ROWS = 32  # evaluation batch size


def main() -> None:
    from jaxnlp.figures.files import save_png

    methods = METHODS.value or list(RATES)
    if unknown := [name for name in methods if name not in RATES]:
        raise UserError(f"--methods={unknown[0]}: no such method; expected one or more of {', '.join(RATES)}")
    bench = Bench(methods)
    results = bench.stored()
    if SEARCH.value:
        bench.search(results)
        print(searched(results))
        return
    bench.train(results)
    bench.time(results)
    print(quality_table(results))
    save_png(picture(results), local(OUT.value))
    if PAGE.value:
        into_page(PAGE.value, "peft_quality", quality_table(results))
    print(f"written: {', '.join(filter(None, (JSON.value, OUT.value, PAGE.value)))}")


class Bench:
    """The programs of the methods, and the data and initial parameters that they share."""

    def __init__(self, methods: list[str]):
        from jaxnlp.data.pipeline import open_split
        from jaxnlp.training.setup import prepare

        self.methods, self._programs, self._bases = methods, {}, {}
        e, self.tokenizer = prepare(self._config(methods[0]))
        splits = ("train", "validation", "test")
        self.stores: dict[str, Any] = {split: open_split(e.data, split, self.tokenizer, say) for split in splits}
        self.settings = {
            "encoder": FOLDER.value or "MiniLM-L6",
            "seq_len": e.data.seq_len,
            "batch_size": e.data.batch_size,
            **{f"{split} examples": len(store.records) for split, store in self.stores.items()},
            "most frequent": most_frequent(self.stores["test"]),
            "corpus": self.stores["train"].meta.tokens_fingerprint,
        }

    def _config(self, method: str) -> Any:
        e = cli.load(f"{CONFIG}:{method},{FOLDER.value}")
        return e if STEPS.value is None else dataclasses.replace(e, num_steps=STEPS.value)

    def experiment(self, method: str, rate: float | None = None, seed: int = 0) -> Any:
        """The resolved experiment of a method, with a learning rate (None: the config's) and a seed."""
        from jaxnlp.training.experiment import resolve

        e = resolve(self._config(method), self.tokenizer)
        optim = e.optim if rate is None else dataclasses.replace(e.optim, learning_rate=rate)
        return dataclasses.replace(e, optim=optim, seed=seed, data=dataclasses.replace(e.data, seed=seed))

    def program(self, method: str, rate: float | None = None) -> Any:
        """The program of a method, built once for all seeds: they only change the initial state and the data order."""
        from jaxnlp.training.step.program import build

        if (method, rate) not in self._programs:
            self._programs[method, rate] = build(self.experiment(method, rate))
        return self._programs[method, rate]

    def state(self, method: str, rate: float | None, seed: int) -> Any:
        """A method's state at step 0: the pretrained body and a head initialised by the seed, equal for all methods."""
        from jaxnlp.training.init.frozen_base import init_state
        from jaxnlp.training.step.program import build

        e = self.experiment(method, rate, seed)
        if seed not in self._bases:
            self._bases[seed] = init_state(build(dataclasses.replace(e, peft=None)), self.tokenizer, say)[0].params
        return build(e).init_from_params(self._bases[seed])

    def run(self, method: str, rate: float | None, seed: int, steps: int, report: Callable[[int, float], Any]) -> Any:
        """The state after `steps` training steps. report: called with (step, loss) after each step."""
        from jaxnlp.data.pipeline import TrainBatches

        program, state = self.program(method, rate), self.state(method, rate, seed)
        batches = TrainBatches(self.stores["train"], self.experiment(method, rate, seed).data, tokenizer=self.tokenizer)
        for step in range(1, steps + 1):
            state, metrics = program.step(state, next(batches))
            report(step, float(metrics["loss"]))
        return state

    def scores(self, method: str, rate: float | None, state: Any, split: str, every: int = 1) -> dict[str, float]:
        """The task's metrics over every `every`-th example of a split."""
        from jaxnlp.evals.loss import evaluate

        program = self.program(method, rate)
        e = program.experiment
        reader = e.data.task.open(self.stores[split], self.tokenizer, e.data)
        indices = range(0, len(reader), every)
        rows = [[*indices[i : i + EVAL_ROWS]] for i in range(0, len(indices), EVAL_ROWS)]
        full = [[*(reader[i] for i in row), *[None] * (EVAL_ROWS - len(row))] for row in rows]
        batches = (reader.batch(row, ()) for row in full)
        return evaluate(program.eval_step, state.all_params, batches, e.objective)

    def search(self, results: dict[str, Any]) -> None:
        """Adds the validation accuracy of each learning rate, at seed 0 after the first part of the run."""
        results["searched"] = f"the first {SEARCH_STEPS.value} of {self.experiment(self.methods[0]).num_steps} steps"
        todo = [(m, r) for m in self.methods for r in RATES[m] if str(r) not in results["search"].get(m, {})]
        with work(len(todo) * SEARCH_STEPS.value) as progress:
            for i, (method, rate) in enumerate(todo):
                report = lambda step, loss, i=i, at=f"{method} at {rate:g}": progress(
                    i * SEARCH_STEPS.value + step, loss, at
                )
                state = self.run(method, rate, 0, SEARCH_STEPS.value, report)
                accuracy = self.scores(method, rate, state, "validation", every=3)["accuracy"]
                results["search"].setdefault(method, {})[str(rate)] = accuracy
                del self._programs[method, rate]
                say(f"{method} at {rate:g}: {accuracy:.1%} of validation")
                store(results)
        store(results)

    def train(self, results: dict[str, Any]) -> None:
        """Trains the runs that are missing in the results, seed by seed for all methods."""
        rate = {m: self.experiment(m).optim.learning_rate for m in self.methods}
        steps = self.experiment(self.methods[0]).num_steps
        matches = lambda row, m: (row.get("rate"), row.get("steps")) == (rate[m], steps)
        is_done = lambda m, seed: matches(results["runs"].get(m, {}).get(str(seed), {}), m)
        todo = [(seed, m) for seed in range(SEEDS.value) for m in self.methods if not is_done(m, seed)]
        with work(len(todo) * steps) as progress:
            for i, (seed, method) in enumerate(todo):
                report = lambda step, loss, i=i, at=f"{method}, seed {seed}": progress(i * steps + step, loss, at)
                state = self.run(method, None, seed, steps, report)
                scores = self.scores(method, None, state, "test")
                row = {"rate": rate[method], "steps": steps, **{k: scores[k] for k in ("accuracy", "f1_macro")}}
                results["runs"].setdefault(method, {})[str(seed)] = row
                say(f"{method}, seed {seed}: {scores['accuracy']:.1%} of test")
                store(results)

    def time(self, results: dict[str, Any]) -> None:
        """Adds parameter counts, memory and step times of each method that has runs. Times are measured in rounds."""
        from jaxnlp.data.pipeline import TrainBatches
        from jaxnlp.planning.planner import compiled_memory, step_batch

        methods = [m for m in RATES if m in results["runs"]]  # all again, as ratios compare times of the same round
        if all(len(results["costs"].get(m, {}).get("seconds", ())) >= ROUNDS.value for m in methods):
            return
        batches = TrainBatches(self.stores["train"], self.experiment(methods[0]).data, tokenizer=self.tokenizer)
        fixed = [next(batches) for _ in range(TURN.value)]
        states: dict[str, Any] = {}
        seconds, cpus = ({method: [] for method in methods} for _ in range(2))
        for method in methods:
            program = self.program(method)
            trained, total = program.tuning.counts()
            memory = compiled_memory(
                program.step.lower(program.abstract, step_batch(program)).compile().memory_analysis()
            )
            results["costs"][method] = {"trained": trained, "total": total, **memory}
            states[method] = program.step(self.state(method, None, 0), fixed[0])[0]
        with work(ROUNDS.value * len(methods)) as progress:
            for i in range(ROUNDS.value):
                for k, method in enumerate(methods if i % 2 == 0 else methods[::-1]):
                    wall, cpu = time.perf_counter(), time.process_time()
                    for batch in fixed:
                        states[method], metrics = self.program(method).step(states[method], batch)
                        loss = float(metrics["loss"])
                    seconds[method].append((time.perf_counter() - wall) / TURN.value)
                    cpus[method].append((time.process_time() - cpu) / TURN.value)
                    progress(i * len(methods) + k + 1, loss, f"timing {method}")
        for method in methods:
            results["costs"][method] |= {"seconds": seconds[method], "cpu seconds": cpus[method]}
        store(results)

    def stored(self) -> dict[str, Any]:
        """Results of an earlier call, or empty results. Raises UserError if unreadable or of other settings."""
        path = local(JSON.value)
        if not path.exists():
            return {"settings": self.settings, "search": {}, "runs": {}, "costs": {}}
        try:
            results = strict_json.loads(path.read_text())
            settings = results["settings"]
        except (OSError, ValueError, KeyError) as e:
            raise UserError(f"--json={JSON.value}: cannot be read ({e}); remove it, or choose another file") from None
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise UserError(
                    f"--json={JSON.value}: contains runs with {name}={settings.get(name)!r}; "
                    f"the current runs have {value!r}; remove the file, or choose another"
                )
        return results


def store(results: dict[str, Any]) -> None:
    path = local(JSON.value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(strict_json.dumps(results, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"--json={JSON.value}: cannot be written ({e.strerror})") from None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def work(total: int) -> Iterator[Callable[[int, float, str], None]]:
    """A progress bar over `total` steps. Yields a function of (steps done, loss, current task)."""
    from jaxnlp.training.run_folder.progress import Progress

    start_time = time.monotonic()
    with Progress(total, 0) as bar:
        seconds_left = lambda step: (time.monotonic() - start_time) / step * (total - step)
        yield lambda step, loss, task: bar.update(step, f"loss {loss:.4f}  {task}", seconds_left(step))


def most_frequent(store: Any) -> float:
    """The accuracy of the majority-class baseline."""
    labels = [record.fields["label"] for record in store.records]
    return max(map(labels.count, set(labels))) / len(labels)


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.ONE)
