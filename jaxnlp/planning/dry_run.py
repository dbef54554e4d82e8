"""Dry run: parameter table, FLOPs and memory estimate, without compiling."""

import math
from typing import Any

import jax

from jaxnlp.nn.remat import HOST
from jaxnlp.planning.activation_memory import saved_activation_bytes
from jaxnlp.sharding.rules import path_name
from jaxnlp.training.step.flops import step_flops
from jaxnlp.training.step.program import Program
from jaxnlp.training.step.state import gradient_shardings
from jaxnlp.trees import merge


def parameter_rows(program: Program) -> list[tuple[str, str, str, str, int]]:
    """(path, shape, logical axes, mesh axes, bytes per device) of each parameter."""
    rows = []
    leaves = jax.tree_util.tree_leaves_with_path(program.abstract.all_params)
    axes = jax.tree.leaves(program.all_axes, is_leaf=lambda x: isinstance(x, tuple))
    for (path, leaf), names in zip(leaves, axes, strict=True):
        spec = tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))
        mesh_axes = ", ".join("+".join(a) if isinstance(a, tuple) else str(a or "-") for a in spec)
        rows.append(
            (path_name(path), "x".join(map(str, leaf.shape)), ", ".join(map(str, names)), mesh_axes, device_bytes(leaf))
        )
    return rows


def parameter_count(program: Program) -> int:
    """Number of parameters of the model and its adapters. Quantised parameters count with their original size."""
    if program.tuning is None:
        return sum(x.size for x in jax.tree.leaves(program.abstract.all_params))
    return sum(x.size for x in jax.tree.leaves(merge(program.tuning.shapes, program.abstract.params)))


def device_bytes(leaf: Any) -> int:
    """Bytes per device of a sharded abstract array."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def abstract_gradients(program: Program) -> Any:
    """Shapes and shardings of the gradients, in the parameters' dtypes."""
    params = program.abstract.params
    layout = gradient_shardings(params, program.axes, program.experiment.sharding, program.mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, layout)


def gradient_bytes(program: Program) -> int:
    """Gradient bytes per device, in the parameters' dtypes.

    Gradient accumulation adds a float32 sum. A pipeline accumulates as it runs and has only the float32 sum.
    """
    summed, staged = program.experiment.accum_steps > 1, program.mesh.shape["stage"] > 1
    width = lambda x: 4 * summed + (0 if summed and staged else x.dtype.itemsize)
    return sum(device_bytes(x) // x.dtype.itemsize * width(x) for x in jax.tree.leaves(abstract_gradients(program)))


def optimizer_bytes(program: Program) -> tuple[int, int]:
    """Bytes of the optimizer state: (on one device, the device's share in host memory)."""
    sizes = {False: 0, True: 0}
    for leaf in jax.tree.leaves(program.abstract.opt_state):
        sizes[leaf.sharding.memory_kind == HOST] += device_bytes(leaf)
    return sizes[False], sizes[True]


def estimate_memory(program: Program) -> dict[str, int]:
    """Bytes per device by category, with their total.

    Parameters and optimizer state are exact; gradients and activations are the estimates of `gradient_bytes` and
    `saved_activation_bytes`. A device's share of host memory is reported separately and not included in the total.
    """
    total = lambda tree: sum(device_bytes(x) for x in jax.tree.leaves(tree))
    state = program.abstract
    device, host = optimizer_bytes(program)
    saved, offloaded = saved_activation_bytes(program)
    sizes = {
        "parameters": total(state.all_params),
        "optimizer state": device,
        "gradients": gradient_bytes(program),
        "activations": saved,
    }
    sizes = {**sizes, "total": sum(sizes.values())}
    in_host = {"optimizer state": host, "activations": offloaded}
    return {**sizes, **{f"{part} in host memory": size for part, size in in_host.items() if size}}


def dry_run_report(program: Program) -> str:
    """The dry run as text."""
    e, rows = program.experiment, parameter_rows(program)
    head = ("parameter", "shape", "logical axes", "mesh axes", "bytes/device")
    table = [head, *((*row[:4], f"{row[4]:,}") for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
    count = parameter_count(program)
    tokens = e.data.batch_size * e.data.seq_len
    step = step_flops(program)
    mesh = " x ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items() if size > 1) or "data=1"
    lines += ["", f"mesh: {mesh} ({program.mesh.size} {program.mesh.devices.flat[0].device_kind} devices)"]
    lines.append(f"parameters: {count:,}")
    rows_by = f"{e.data.batch_size} x {e.data.seq_len}"
    lines.append(
        f"tokens per step: {tokens:,} ({rows_by}); the run: {e.num_steps:,} steps, {e.num_steps * tokens:,} tokens"
    )
    per_token, run = step / tokens, step * e.num_steps
    lines.append(f"FLOPs per token (forward and backward): {per_token:.3e}; per step: {step:.3e}; the run: {run:.3e}")
    parts = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in estimate_memory(program).items())
    lines.append(f"memory on each device (estimate): {parts}")
    return "\n".join(lines)
