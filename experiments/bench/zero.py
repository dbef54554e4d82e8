"""A GPT of 7.5 billion parameters under DDP and the three stages of ZeRO: bytes per device, from the shardings."""

import dataclasses
import math
from typing import Any

STAGES = ("DDP", "ZERO1", "ZERO2", "ZERO3")
PARTS = ("parameters", "gradients", "optimizer state")
FLOAT32, MIXED = (4, 4, 8), (2, 2, 12)  # bytes per parameter, by part
MANY = 64


def large() -> Any:
    """A GPT-2 of 7.46 billion parameters: 36 layers of width 4096, a vocabulary of 50,304; one sequence per device."""
    from jaxnlp.data.pipeline import DataConfig
    from jaxnlp.models.gpt import GPTConfig
    from jaxnlp.nn.policy import Policy
    from jaxnlp.optim import OptimConfig
    from jaxnlp.training.experiment import Experiment

    policy = Policy(param_dtype="bfloat16", compute_dtype="bfloat16")
    model = GPTConfig(vocab_size=50304, max_length=1024, num_layers=36, num_heads=32, embed_dim=4096, policy=policy)
    model = dataclasses.replace(model, scan_layers=True, remat="full")
    data = DataConfig(seq_len=1024, batch_size=MANY)
    return Experiment(model=model, data=data, optim=OptimConfig(master_dtype="float32"))


def formula(count: int, devices: int, bytes_: tuple[int, int, int]) -> dict[str, float]:
    """Stage -> bytes per device by ZeRO's formula. bytes_: per parameter, of each of `PARTS`."""
    divisors = {"DDP": (1, 1, 1), "ZERO1": (1, 1, devices), "ZERO2": (1, devices, devices), "ZERO3": (devices,) * 3}
    return {
        stage: count * sum(b / ways for b, ways in zip(bytes_, divisor_row, strict=True))
        for stage, divisor_row in divisors.items()
    }


def of_shardings(experiment: Any, devices: int) -> dict[str, Any]:
    """Bytes per device of each part, computed from the state's shapes and the sharding tables without any array."""
    import jax
    from jax.sharding import AbstractMesh

    from jaxnlp.optim import make_optimizer
    from jaxnlp.sharding.functional import abstract_params
    from jaxnlp.sharding.mesh import AXES
    from jaxnlp.sharding.presets import PRESETS
    from jaxnlp.training.step.state import gradient_shardings, new_state, state_shardings

    model = experiment.model
    shapes, axes = abstract_params(model.build(), *model.example_inputs(devices, model.max_length))
    optimizer, _ = make_optimizer(experiment.optim, experiment.num_steps, axes)
    state = jax.eval_shape(lambda p: new_state(p, optimizer, 0, None), shapes)
    count = sum(x.size for x in jax.tree.leaves(shapes))
    parts = {}
    for stage in STAGES:
        table = PRESETS[stage].over(**{"data" if stage == "DDP" else "fsdp": devices})
        mesh = AbstractMesh(tuple(table.mesh.sizes(devices)[axis] for axis in AXES), AXES)
        layout = state_shardings(state, axes, table, mesh)
        pairs = (
            (shapes, layout.params),
            (shapes, gradient_shardings(shapes, axes, table, mesh)),
            (state.opt_state, layout.opt_state),
        )
        parts[stage] = {part: [shares(*pair)] for part, pair in zip(PARTS, pairs, strict=True)}
    title = f"GPT of {count / 1e9:.2f}B, mixed precision, {devices} devices"
    return {
        "title": title,
        "parameters": count,
        "devices": devices,
        "bytes": parts,
        "formula": formula(count, devices, MIXED),
    }


def shares(shapes: Any, layout: Any) -> int:
    """Bytes per device of a tree of shapes with a tree of shardings."""
    import jax

    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(layout), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in leaves)
