"""Memory and FLOPs of a LoRA step against full fine-tuning, from programs compiled for a TPU. Nothing is executed.

  python -m experiments.bench.lora_compiled      writes docs/measurements/lora_compiled.json

The model is GPT-2 1.5B in bfloat16, with sequence 1,024, LoRA of rank 8 on queries and values, and no remat.

Memory: the temporaries of the compiled step, and the residuals that the compiled forward pass returns.
FLOPs: the compiler counts the body of a loop once, so models with one and with three unrolled layers are compiled and
extrapolated linearly to 48.
Weight gradients: results in the compiled program that have the shape of a stack of kernels.

Needs libtpu (`make tpu`) but no TPU. The seven compilations take about a minute each on two cores. Each result is saved
in the JSON, so an interrupted run resumes.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments.bench.lora_figures import compiled_table, weight_gradients
from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local

JSON = flags.DEFINE_string("json", "docs/measurements/lora_compiled.json", "JSON file to write.")
TOPOLOGY = flags.DEFINE_string("topology", "v5p:1x1x1", "Chip, in the format of jaxnlp.planning.topology.")
BATCH = flags.DEFINE_integer("batch_size", 2, "Batch size, in rows of 1,024 tokens.")
VARIANT = flags.DEFINE_string("variant", "xl-tpu", "Variant of configs/gpt/gpt2.py.")

LAYERS = (1, 3)


def main() -> None:
    results = stored()
    parts: dict[str, Callable[[], Any]] = {"activations": lambda: forward(program(True))}
    for name, tuned in (("LoRA", True), ("full", False)):
        parts[name] = lambda tuned=tuned, name=name: step(program(tuned), name)
        for layers in LAYERS:
            parts[f"{name}, {layers}"] = lambda tuned=tuned, name=name, layers=layers: operations(tuned, name, layers)
    for part, measure in parts.items():
        if part not in results:
            results[part] = measure()
            store(results)
    for name in ("LoRA", "full"):
        results[f"{name}, flops"] = extrapolated(results[f"{name}, {LAYERS[0]}"], results[f"{name}, {LAYERS[1]}"])
    results["memory ratio"] = (results["LoRA"]["temporaries"] - results["LoRA"]["trained"]) / results["activations"]
    results["flops ratio"] = results["LoRA, flops"] / results["full, flops"]
    store(results)
    print(compiled_table(results))
    print(f"residuals of the forward pass: {results['activations'] / 1e9:.2f} GB")
    print(f"temporaries without trained parameters, over those residuals: {results['memory ratio']:.2f}x")
    print(f"operations, over those of full fine-tuning: {results['flops ratio']:.2f}x")
    print(f"written: {JSON.value}")


def settings() -> dict[str, Any]:
    return {"variant": VARIANT.value, "batch_size": BATCH.value, "topology": TOPOLOGY.value}


def stored() -> dict[str, Any]:
    """Results of an earlier run with the same settings, or the settings alone. Raises UserError if unreadable."""
    try:
        results = strict_json.loads(local(JSON.value).read_text())
    except FileNotFoundError:
        return settings()
    except (OSError, ValueError) as e:
        raise UserError(f"--json={JSON.value}: cannot be read ({e}); remove it") from None
    return results if settings().items() <= results.items() else settings()


def store(results: dict[str, Any]) -> None:
    try:
        local(JSON.value).write_text(strict_json.dumps(results, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"--json={JSON.value}: cannot be written ({e.strerror})") from None


def program(tuned: bool, num_layers: int | None = None) -> Any:
    """The program of LoRA (`tuned`) or full fine-tuning. With `num_layers`, that many unrolled layers."""
    from jaxnlp.nn.policy import Policy
    from jaxnlp.peft.lora import LoRA
    from jaxnlp.planning.topology import topology_devices
    from jaxnlp.training.step.program import build

    e = cli.load(f"configs/gpt/gpt2.py:{VARIANT.value}")
    fields: dict[str, Any] = {} if num_layers is None else {"num_layers": num_layers, "scan_layers": False}
    precision = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")
    model = dataclasses.replace(e.model, remat="none", policy=precision, **fields)
    data = dataclasses.replace(e.data, seq_len=model.max_length, batch_size=BATCH.value)
    tuning = LoRA(rank=8) if tuned else None
    return build(
        dataclasses.replace(e, model=model, data=data, accum_steps=1, peft=tuning), topology_devices(TOPOLOGY.value)
    )


def compiled(program: Any, label: str) -> Any:
    from jaxnlp.planning.planner import step_batch

    print(f"compiling {label}", file=sys.stderr, flush=True)
    return program.step.lower(program.abstract, step_batch(program)).compile()


def forward(program: Any) -> int:
    """Bytes of the residuals that the compiled forward pass returns, without parameters."""
    import jax

    from jaxnlp.planning.planner import step_batch

    print("compiling the forward pass", file=sys.stderr, flush=True)
    objective = program.experiment.objective
    param_types = {(x.shape, x.dtype) for x in jax.tree.leaves(program.abstract.all_params)}

    def residuals(state, batch):
        all_params = lambda params: dataclasses.replace(state, params=params).all_params
        loss = lambda p: objective.loss(program.apply, all_params(p), objective.prepare(batch), jax.random.key(0))[0]
        return [x for x in jax.tree.leaves(jax.vjp(loss, state.params)[1]) if (x.shape, x.dtype) not in param_types]

    with program.context():
        executable: Any = jax.jit(residuals).lower(program.abstract, step_batch(program)).compile()
    return executable.memory_analysis().output_size_in_bytes


def step(program: Any, name: str) -> dict[str, int]:
    """The compiler's memory analysis of a step, bytes of trained parameters, and number of weight gradients."""
    import jax

    from jaxnlp.planning.planner import compiled_memory

    executable = compiled(program, f"the step of {name}")
    stacks = {
        x.shape for x in jax.tree.leaves(program.abstract.all_params) if x.ndim > 2 and math.prod(x.shape[1:]) > 1e6
    }
    trained = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract.params))
    result = {"trained": trained, "weight gradients": weight_gradients(executable.as_text(), stacks)}
    return compiled_memory(executable.memory_analysis()) | result


def operations(tuned: bool, name: str, layers: int) -> float:
    """FLOPs of a step with `layers` unrolled layers, as counted by the compiler."""
    return compiled(program(tuned, layers), f"{layers} layers of {name}, for operations").cost_analysis()["flops"]


def extrapolated(flops_1: float, flops_3: float) -> float:
    """Extrapolates linearly from the counts at `LAYERS` to the model's number of layers."""
    depth = cli.load(f"configs/gpt/gpt2.py:{VARIANT.value}").model.num_layers
    return flops_1 + (depth - LAYERS[0]) * (flops_3 - flops_1) / (LAYERS[1] - LAYERS[0])


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
