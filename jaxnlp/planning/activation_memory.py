"""Activation memory per device, from the residuals that JAX saves for the backward pass.

The step is traced, not compiled. Remat and every component are counted as traced; the compiler often fuses some of the
residuals away and adds scratch memory of its own.
"""

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from jaxnlp.nn.policy import Policy
from jaxnlp.sharding.mesh import AXES
from jaxnlp.sharding.pipeline import Naive, OneFOneB, named_schedule, ticks
from jaxnlp.sharding.rules import Sharding, as_tuple
from jaxnlp.training.experiment import abstract_batch
from jaxnlp.training.step.program import Program, build

SPLIT = {"num_heads": "heads", "num_kv_heads": "kv_heads", "mlp_dim": "mlp", "hidden_dim": "mlp", "vocab_size": "vocab"}
"""Size field of a model -> the logical activation axis that has this size."""


def saved_activation_bytes(program: Program) -> tuple[int, int]:
    """Saved activations: (bytes in device memory, the device's share of bytes in host memory).

    With remat the device bytes include the residuals of the one block being recomputed. The count covers one
    microbatch, or the microbatches that a pipeline's schedule has in flight. Activations are divided over the devices
    that shard the batch, the length and the axes of tensor parallelism. Residuals that remat offloads are reported
    separately; they return to the device for the one block being recomputed.
    """
    (layers, outside), host = _residual_bytes(program)
    model = program.experiment.model
    block = 0
    if model.body.remat not in (None, "none"):
        plain = dataclasses.replace(program.experiment, model=model.with_body(remat="none"))
        plain_bytes, _ = _residual_bytes(dataclasses.replace(program, experiment=plain))
        block = (sum(plain_bytes) - layers - outside) // model.body.num_layers
    return _staged(program, layers, outside) + block, sum(host)


def _staged(program: Program, layers: int, outside: int) -> int:
    """Bytes on one pipeline stage, from one microbatch's bytes in all layers and outside the layers."""
    e, stages = program.experiment, program.mesh.shape["stage"]
    schedule = named_schedule(e.sharding.pipeline) if stages > 1 else None
    if schedule is None or isinstance(schedule, Naive):  # idle ticks save residuals like the others
        return layers + outside
    m = e.accum_steps
    policy = e.model.body.policy or Policy()
    size = e.model.body.embed_dim * policy.dtype.itemsize
    between = e.data.batch_size // m * e.data.seq_len * size // _ways(program, ("batch", "residual"))
    if isinstance(schedule, OneFOneB):
        return layers // stages + outside + (2 * stages + 1) * between
    count = ticks(schedule, stages, m)
    # Input and output of the stages in each tick, and input and output of the layer stack for every microbatch.
    return layers * count // (stages * schedule.virtual_stages) + outside + 2 * (count + m) * between


def _ways(program: Program, names: tuple[str, ...]) -> int:
    """Number of shards of an activation with these logical axes. A mesh axis that several of them use counts once."""
    table, sizes = program.experiment.sharding.activations, program.mesh.shape
    return math.prod(sizes[axis] for axis in {axis for name in names for axis in as_tuple(table.get(name))})


def _residual_bytes(program: Program) -> tuple[tuple[int, int], tuple[int, int]]:
    """Residual bytes per device of one microbatch, without parameters.

    Returns ((stacked layers, elsewhere) in device memory, (stacked layers, elsewhere) in host memory). Under tensor
    parallelism a device's share is that of a model with 1/n of the heads, hidden units and vocabulary.
    """
    e = program.experiment
    sizes = {field: _ways(program, (axis,)) for field, axis in SPLIT.items()}
    arrays = _residuals(program, dict.fromkeys(sizes, 1))
    shares = arrays if set(sizes.values()) == {1} else _residuals(program, sizes)
    if len(shares) != len(arrays):
        shares = arrays
    within, between = _ways(program, ("batch", "length")), _ways(program, ("batch", "residual"))
    sizes_by_memory = {False: [0, 0], True: [0, 0]}
    for full, share in zip(arrays, shares, strict=True):
        stacked = share.ndim > 1 and share.shape[0] == e.model.body.num_layers
        size = math.prod(share.shape) * share.dtype.itemsize
        ways = between if full.shape == share.shape else within
        sizes_by_memory[share.memory_space == jax.memory.Space.Host][not stacked] += size // ways
    (layers, outside), host = sizes_by_memory[False], sizes_by_memory[True]
    return (layers, outside), (host[0], host[1])


def _residuals(program: Program, ways: dict[str, int]) -> list[Any]:
    """Abstract residuals of the loss for one microbatch with all rows. `ways` divides the sizes of the model."""
    e = program.experiment
    model = e.model.body
    fields, ways = {field.name for field in dataclasses.fields(model)}, {**ways, "head_dim": 1}
    sizes = {"num_heads": model.num_heads, "num_kv_heads": model.num_kv_heads, "head_dim": model.key_dim}
    sizes |= {"mlp_dim": model.mlp_dim or model.hidden_dim, "hidden_dim": model.hidden_dim}
    sizes |= {"vocab_size": model.vocab_size}
    if set(ways.values()) != {1}:
        changes = {field: size // ways[field] for field, size in sizes.items() if field in fields and size is not None}
        e = dataclasses.replace(e, model=e.model.with_body(**changes))
    # The mesh keeps only the axes that shard the batch and the length.
    devices = program.mesh.devices[tuple(slice(1) if a in ("stage", "tensor") else slice(None) for a in AXES)]
    mesh = Mesh(devices, AXES, axis_types=program.mesh.axis_types)
    single = build(dataclasses.replace(e, sharding=Sharding().over()), list(mesh.devices.flat)[:1], only_traced=True)
    batch = abstract_batch(e, e.data.batch_size // e.accum_steps)
    key = jax.eval_shape(lambda: jax.random.key(0))
    bare = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    state = dataclasses.replace(
        single.abstract, params=bare(single.abstract.params), frozen=bare(single.abstract.frozen)
    )

    def residuals(params, frozen, batch, key):
        model_of = lambda p: dataclasses.replace(state, params=p, frozen=frozen).all_params
        loss = lambda p: e.objective.loss(single.apply, model_of(p), e.objective.prepare(batch), key)[0]
        return jax.tree.leaves(jax.vjp(loss, params)[1])

    with dataclasses.replace(program, mesh=mesh).context():
        residual_avals = jax.make_jaxpr(residuals)(state.params, state.frozen, batch, key).out_avals
    param_types = {(x.shape, x.dtype) for x in jax.tree.leaves(state.all_params)}
    return [x for x in residual_avals if (x.shape, x.dtype) not in param_types]
