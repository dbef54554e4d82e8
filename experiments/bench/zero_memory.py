"""Bytes of parameters, gradients and optimizer state on each device, under DDP and the three stages of ZeRO.

  python -m experiments.bench.zero_memory        writes docs/zero_memory.json and docs/images/zero_memory.png

Two models: configs/gpt/tiny.py over 8 virtual CPU devices, whose arrays are made and measured where they lie; and a GPT
of 7.5 billion parameters over 64 devices, whose shares are those of its shardings, for no array of it is made. The
first has float32 parameters and gradients and Adam's two moments: 4 + 4 + 8 bytes a parameter. The second is in mixed
precision as in the ZeRO paper (Rajbhandari et al. 2020, arXiv:1910.02054, figure 1), bfloat16 parameters and
gradients, and with the moments a float32 copy of the parameters: 2 + 2 + 12.
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

from absl import flags

from jaxnlp import cli, processes, runtime
from jaxnlp.errors import UserError

JSON = flags.DEFINE_string("json", "docs/zero_memory.json", "JSON to write.")
OUT = flags.DEFINE_string("out", "docs/images/zero_memory.png", "PNG to write.")

STAGES = ("DDP", "ZERO1", "ZERO2", "ZERO3")
PARTS = ("parameters", "gradients", "optimizer state")
FLOAT32, MIXED = (4, 4, 8), (2, 2, 12)  # bytes a parameter, by part
DEVICES, MANY = 8, 64


def main() -> None:
    import jax

    from jaxnlp.figures.files import save_png
    from jaxnlp.figures.parallelism import amount

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    found = {"tiny": of_arrays(tiny(), jax.devices()), "7.5B": of_shardings(large(), MANY)}
    for model in found.values():
        print(f"{model['title']}: {model['parameters']:,} parameters, {model['devices']} devices")
        for stage, parts in model["bytes"].items():
            told = ", ".join(f"{part} {amount(max(parts[part]))}" for part in PARTS)
            total = sum(max(parts[part]) for part in PARTS)
            print(f"  {stage:6} {told}: {amount(total)} a device; formula {amount(model['formula'][stage])}")
    save_png(picture(found), pathlib.Path(OUT.value))
    try:
        pathlib.Path(JSON.value).write_text(json.dumps(found, indent=1) + "\n")
    except OSError as e:
        raise UserError(f"--json={JSON.value}: cannot be written ({e.strerror})") from None
    print(f"written: {JSON.value}, {OUT.value}")


def tiny() -> Any:
    """configs/gpt/tiny.py; the batch divides over the devices."""
    e = cli.load("configs/gpt/tiny.py")
    model = dataclasses.replace(e.model, vocab_size=2048)
    return dataclasses.replace(e, model=model, data=dataclasses.replace(e.data, batch_size=DEVICES))


def large() -> Any:
    """A GPT-2 of 7.46 billion parameters: 36 layers of width 4096, a vocabulary of 50,304."""
    from jaxnlp.models.gpt import GPTConfig
    from jaxnlp.nn.policy import Policy
    from jaxnlp.optim import OptimConfig
    from jaxnlp.train.experiment import Experiment

    policy = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")
    model = GPTConfig(
        vocab_size=50304, max_len=1024, num_layers=36, num_heads=32, embed_dim=4096, scan_layers=True, policy=policy
    )
    return Experiment(model=model, optim=OptimConfig(master_dtype="float32"))


def formula(count: int, devices: int, bytes_: tuple[int, int, int]) -> dict[str, float]:
    """Bytes on a device, by stage: what is split is divided by the number of devices."""
    split = {"DDP": (1, 1, 1), "ZERO1": (1, 1, devices), "ZERO2": (1, devices, devices), "ZERO3": (devices,) * 3}
    return {stage: count * sum(b / by for b, by in zip(bytes_, ways, strict=True)) for stage, ways in split.items()}


def of_arrays(experiment: Any, devices: list[Any]) -> dict[str, Any]:
    """Parameters and optimizer state made, each device's arrays measured; gradients, made within a step, by shares."""
    import jax

    from jaxnlp.sharding.presets import PRESETS
    from jaxnlp.train.plan import abstract_gradients, device_bytes
    from jaxnlp.train.program import build

    found, count = {}, 0
    for stage in STAGES:
        axis = "data" if stage == "DDP" else "fsdp"
        e = dataclasses.replace(experiment, sharding=PRESETS[stage].on(**{axis: len(devices)}))
        program = build(e, devices)
        state = program.init()
        each = sum(device_bytes(x) for x in jax.tree.leaves(abstract_gradients(program)))
        count = sum(x.size for x in jax.tree.leaves(state.params))
        found[stage] = {
            "parameters": lying(state.params, devices),
            "gradients": [each] * len(devices),
            "optimizer state": lying(state.opt_state, devices),
        }
    title = f"configs/gpt/tiny.py, float32, {len(devices)} CPU devices"
    return {
        "title": title,
        "parameters": count,
        "devices": len(devices),
        "bytes": found,
        "formula": formula(count, len(devices), FLOAT32),
    }


def lying(tree: Any, devices: list[Any]) -> list[int]:
    """Bytes of a tree's arrays on each device."""
    import jax

    total = dict.fromkeys(devices, 0)
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            total[shard.device] += shard.data.nbytes
    return list(total.values())


def of_shardings(experiment: Any, devices: int) -> dict[str, Any]:
    """Each part's share of a device, from the state's shapes and the tables alone."""
    import jax
    from jax.sharding import AbstractMesh

    from jaxnlp.optim import make_optimizer
    from jaxnlp.sharding.axes import abstract_params, example_inputs
    from jaxnlp.sharding.mesh import AXES
    from jaxnlp.sharding.presets import PRESETS
    from jaxnlp.train.state import gradient_shardings, new_state, state_shardings

    model = experiment.model
    shapes, axes = abstract_params(model.module(), *example_inputs(model, devices, model.max_len))
    optimizer, _ = make_optimizer(experiment.optim, experiment.steps, axes)
    state = jax.eval_shape(lambda p: new_state(p, optimizer, 0, None), shapes)
    count = sum(x.size for x in jax.tree.leaves(shapes))
    found = {}
    for stage in STAGES:
        table = PRESETS[stage].on(**{"data" if stage == "DDP" else "fsdp": devices})
        mesh = AbstractMesh(tuple(table.mesh.sizes(devices)[axis] for axis in AXES), AXES)
        layout = state_shardings(state, axes, table, mesh)
        pairs = (
            (shapes, layout.params),
            (shapes, gradient_shardings(shapes, axes, table, mesh)),
            (state.opt_state, layout.opt_state),
        )
        found[stage] = {part: [shares(*pair)] for part, pair in zip(PARTS, pairs, strict=True)}
    title = f"GPT of {count / 1e9:.2f}B, mixed precision, {devices} devices"
    return {
        "title": title,
        "parameters": count,
        "devices": devices,
        "bytes": found,
        "formula": formula(count, devices, MIXED),
    }


def shares(shapes: Any, layout: Any) -> int:
    """Bytes of one device's share of a tree of shapes."""
    import jax

    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(layout), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)


def picture(found: dict[str, Any]) -> Any:
    """The bars of every model; of each part the fullest device's."""
    from jaxnlp.figures.parallelism import Memory, draw_memory

    bars = {
        model["title"]: [
            Memory(stage, {part: max(counts) for part, counts in parts.items()}, model["formula"][stage])
            for stage, parts in model["bytes"].items()
        ]
        for model in found.values()
    }
    return draw_memory(bars, "Model states on each device")


if __name__ == "__main__":
    runtime.prepare()
    cli.run(main, __doc__, by=processes.FIRST)
