"""Bytes of parameters, gradients and optimizer state per device, under DDP and the three stages of ZeRO.

  python -m experiments.bench.zero_memory        writes zero_memory.json (docs/measurements) and zero_memory.png

There are two models. The first is configs/gpt/tiny.py over 8 virtual CPU devices; its arrays are created and measured.
It has float32 parameters and gradients and Adam's two moments: 4 + 4 + 8 bytes per parameter. The second is a GPT of
7.5 billion parameters over 64 devices; its bytes are computed from its shardings without creating arrays. It uses mixed
precision as in the ZeRO paper (Rajbhandari et al. 2020, arXiv:1910.02054, figure 1): bfloat16 parameters and gradients,
and an optimizer state of float32 moments and master parameters, 2 + 2 + 12 bytes per parameter.
"""

import dataclasses
from typing import Any

from absl import flags

from experiments.bench.zero import FLOAT32, MANY, PARTS, STAGES, formula, large, of_shardings
from jaxnlp import cli, distributed, runtime, strict_json
from jaxnlp.errors import UserError
from jaxnlp.paths import local

JSON = flags.DEFINE_string("json", "docs/measurements/zero_memory.json", "JSON file to write.")
PEAKS = flags.DEFINE_string(
    "peaks",
    "docs/measurements/zero_compiled.json",
    "JSON file of zero_compiled, whose peaks are drawn next to the states.",
)
OUT = flags.DEFINE_string("out", "docs/images/zero_memory.png", "PNG file to write.")

DEVICES = 8


def main() -> None:
    import jax

    from jaxnlp.figures.files import save_png
    from jaxnlp.figures.parallelism import amount

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    results = {"tiny": of_arrays(tiny(), jax.devices()), "7.5B": of_shardings(large(), MANY)}
    for model in results.values():
        print(f"{model['title']}: {model['parameters']:,} parameters, {model['devices']} devices")
        for stage, parts in model["bytes"].items():
            line = ", ".join(f"{part} {amount(max(parts[part]))}" for part in PARTS)
            total = sum(max(parts[part]) for part in PARTS)
            print(f"  {stage:6} {line}: {amount(total)} per device; formula {amount(model['formula'][stage])}")
    save_png(picture(results, peaks(PEAKS.value)), local(OUT.value))
    try:
        local(JSON.value).write_text(strict_json.dumps(results, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"--json={JSON.value}: cannot be written ({e.strerror})") from None
    print(f"written: {JSON.value}, {OUT.value}")


def tiny() -> Any:
    """configs/gpt/tiny.py with a batch size that is divisible by the number of devices."""
    e = cli.load("configs/gpt/tiny.py")
    model = dataclasses.replace(e.model, vocab_size=2048)
    return dataclasses.replace(e, model=model, data=dataclasses.replace(e.data, batch_size=DEVICES))


def of_arrays(experiment: Any, devices: list[Any]) -> dict[str, Any]:
    """Bytes per device: measured for parameters and optimizer state; computed for gradients, which a step creates."""
    import jax

    from jaxnlp.planning.dry_run import abstract_gradients, device_bytes
    from jaxnlp.sharding.presets import PRESETS
    from jaxnlp.training.step.program import build

    parts, count = {}, 0
    for stage in STAGES:
        axis = "data" if stage == "DDP" else "fsdp"
        e = dataclasses.replace(experiment, sharding=PRESETS[stage].over(**{axis: len(devices)}))
        program = build(e, devices)
        state = program.init()
        gradient_bytes = sum(device_bytes(x) for x in jax.tree.leaves(abstract_gradients(program)))
        count = sum(x.size for x in jax.tree.leaves(state.params))
        parts[stage] = {
            "parameters": bytes_on_devices(state.params, devices),
            "gradients": [gradient_bytes] * len(devices),
            "optimizer state": bytes_on_devices(state.opt_state, devices),
        }
    title = f"configs/gpt/tiny.py, float32, {len(devices)} CPU devices"
    return {
        "title": title,
        "parameters": count,
        "devices": len(devices),
        "bytes": parts,
        "formula": formula(count, len(devices), FLOAT32),
    }


def bytes_on_devices(tree: Any, devices: list[Any]) -> list[int]:
    """Bytes of a tree's arrays on each device."""
    import jax

    total = dict.fromkeys(devices, 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            total[shard.device] += shard.data.nbytes
    return list(total.values())


def peaks(path: str) -> dict[str, float]:
    """Stage -> peak bytes of the compiled step, from the file of `zero_compiled`. Raises UserError if unreadable."""
    try:
        table = strict_json.loads(local(path).read_text())["table"]
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"--peaks={path}: not a file written by experiments.bench.zero_compiled ({e})") from None
    return {stage: row["peak"] for stage, row in table.items() if row["peak"] is not None}


def picture(results: dict[str, Any], peak: dict[str, float]) -> Any:
    """A bar chart of every model, with the fullest device of each part. The bars of the large model show the peak."""
    from jaxnlp.figures.parallelism import Memory, draw_memory

    bars = {}
    for name, model in results.items():
        bars[model["title"]] = [
            Memory(
                stage,
                {part: max(counts) for part, counts in parts.items()},
                model["formula"][stage],
                peak.get(stage) if name == "7.5B" else None,
            )
            for stage, parts in model["bytes"].items()
        ]
    return draw_memory(bars, "Model states on each device")


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
