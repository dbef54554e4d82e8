"""Compare naive data parallelism with DDP: bytes that each device sends and receives per step, and equal results.

  python -m experiments.figures.data_parallel --out=data_parallel.png
  python -m experiments.figures.data_parallel --devices=4 --config=configs/gpt/tiny.py --config.data.batch_size=8

Runs on virtual CPU devices. The naive form works as torch.nn.DataParallel: one device scatters the batch and the
parameters, gathers outputs and gradients, and updates. Every array transfer is counted. DDP all-reduces the gradients;
the all-reduces of the compiled program are counted with the traffic of a ring algorithm. The default config is
configs/gpt/tiny.py with two layers of width 64, untied embeddings, sequences of 32 tokens, a batch of 8 and no warm-up.
"""

import dataclasses
from typing import Any

from absl import flags

from jaxnlp import cli, distributed, runtime
from jaxnlp.errors import UserError
from jaxnlp.paths import local

CONFIG = cli.define_config()
DEVICES = flags.DEFINE_integer("devices", 8, "Number of virtual CPU devices.")
STEPS = flags.DEFINE_integer("steps", 3, "Number of steps before the parameters are compared.")
OUT = flags.DEFINE_string("out", None, "PNG file to write.")

TrafficBytes = dict[str, list[tuple[int, int]]]  # category -> bytes (sent, received) of each device


def main() -> None:
    import jax

    from jaxnlp.figures.files import save_png
    from jaxnlp.figures.parallelism import draw_traffic

    if DEVICES.value < 2 or STEPS.value < 1:
        raise UserError(f"--devices={DEVICES.value} --steps={STEPS.value}: expected at least two devices and one step")
    if OUT.value is not None and not OUT.value.lower().endswith(".png"):
        raise UserError(f"--out={OUT.value}: expected a file name that ends in .png")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES.value)
    comparison = compare(default() if CONFIG.value is None else CONFIG.value, jax.devices(), STEPS.value)
    print(report(comparison))
    if OUT.value is not None:
        ways = {"naive, through device 0": comparison.naive, "DDP, all-reduced in a ring": comparison.ddp}
        save_png(draw_traffic(ways, comparison.param_bytes), local(OUT.value))
        print(f"written: {OUT.value}")


def default() -> Any:
    """A smaller version of the tiny GPT."""
    tiny = cli.load("configs/gpt/tiny.py")
    # With tied embeddings, XLA's CPU backend all-reduces both gradients before it adds them, which is more than Psi.
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, num_layers=2, embed_dim=64, tie_embeddings=False),
        data=dataclasses.replace(tiny.data, seq_len=32, batch_size=8),
        optim=dataclasses.replace(tiny.optim, warmup_steps=0),
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Traffic and results of the compared methods.

    param_bytes: bytes of all parameters (Psi). naive, ddp: category -> (sent, received) bytes of each device per step.
    distances: relative distance (`distance`) of the final parameters of "naive" and "DDP" and of the initial
        parameters ("start") from the final parameters of one device.
    losses: method -> loss of each step.
    """

    param_bytes: int
    naive: TrafficBytes
    ddp: TrafficBytes
    distances: dict[str, float]
    losses: dict[str, list[float]]


def compare(experiment: Any, devices: list[Any], steps: int) -> Comparison:
    """Trains on one device, with the naive form and with DDP, on the same batches from the same parameters.

    Raises:
        UserError: the model has dropout, whose masks would differ.
    """
    import jax

    from jaxnlp.data.pipeline import TrainBatches, open_split
    from jaxnlp.sharding.mesh import MeshConfig
    from jaxnlp.sharding.rules import Sharding
    from jaxnlp.training.setup import prepare
    from jaxnlp.training.step.program import build

    e, tokenizer = prepare(dataclasses.replace(experiment, accum_steps=1, steps_per_call=1))
    if e.model.dropout_rate:
        raise UserError(
            f"model.dropout_rate={e.model.dropout_rate}: the methods would draw different dropout masks; expected 0"
        )
    on_devices = lambda count: dataclasses.replace(e, sharding=Sharding(mesh=MeshConfig(data=count)))
    single, parallel = build(on_devices(1), devices[:1]), build(on_devices(len(devices)), devices)
    batches = TrainBatches(open_split(e.data, "train", tokenizer), e.data, tokenizer=tokenizer)
    stack = [next(batches) for _ in range(steps)]
    params = single.init().params
    naive, losses, traffic = train_centrally(single, stack, devices)
    results = {"one device": train(single, stack), "naive": (naive, losses), "DDP": train(parallel, stack)}
    reference = results["one device"][0]
    hlo = parallel.step.lower(parallel.abstract, stack[0]).compile().as_text()
    return Comparison(
        param_bytes=sum(x.nbytes for x in jax.tree.leaves(params)),
        naive=traffic,
        ddp=all_reduced(hlo, len(devices)),
        distances={
            name: distance(end, reference)
            for name, end in (("naive", naive), ("DDP", results["DDP"][0]), ("start", params))
        },
        losses={name: losses for name, (_, losses) in results.items()},
    )


def train(program: Any, batches: list[Any]) -> tuple[Any, list[float]]:
    """(parameters, losses) after one step per batch."""
    state, losses = program.init(), []
    for batch in batches:
        state, metrics = program.step(state, batch)
        losses.append(float(metrics["loss"]))
    return state.params, losses


def train_centrally(program: Any, batches: list[Any], devices: list[Any]) -> tuple[Any, list[float], TrafficBytes]:
    """(parameters, losses, traffic per step) of the naive form, from `program`'s initial parameters."""
    import jax

    from jaxnlp.optim import make_optimizer
    from jaxnlp.sharding.data_parallel import Central, Traffic

    e = program.experiment
    optimizer, _ = make_optimizer(e.optim, e.num_steps, program.axes)
    central = Central(program.apply, e.objective, optimizer, devices)
    params = jax.device_put(program.init().params, devices[0])
    opt_state, traffic, losses = jax.device_put(optimizer.init(params), devices[0]), Traffic(devices), []
    for batch in batches:
        batch = jax.device_put(e.objective.prepare(batch), devices[0])
        params, opt_state, loss = central.step(params, opt_state, batch, traffic)
        losses.append(float(loss))
    step = {
        kind: [
            (a // len(batches), b // len(batches))
            for a, b in zip(traffic.sent[kind], traffic.received[kind], strict=True)
        ]
        for kind in traffic.sent
    }
    return params, losses, step


def all_reduced(hlo: str, num_devices: int) -> TrafficBytes:
    """Traffic of DDP's program: all-reduced gradients, and scalars such as the loss."""
    from jaxnlp.planning.hlo import collectives
    from jaxnlp.sharding.data_parallel import ring_bytes

    size = sum(
        collective.bytes * collective.count for collective in collectives(hlo) if collective.kind == "all-reduce"
    )
    ring = ring_bytes(size, num_devices)
    return {"gradients": [(ring, ring)] * num_devices}


def distance(params: Any, reference: Any) -> float:
    """The norm of the difference of two trees divided by the norm of the second."""
    import jax
    import numpy as np

    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (params, reference)]
    return float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))


def report(comparison: Comparison) -> str:
    """The comparison as text."""
    from jaxnlp.sharding.data_parallel import central_bytes, ring_bytes

    size, count = comparison.param_bytes, len(comparison.ddp["gradients"])
    columns = {f"naive {kind}": comparison.naive[kind] for kind in comparison.naive} | {
        "DDP gradients": comparison.ddp["gradients"]
    }
    head = ("device", *columns)
    table = [
        [str(i), *(f"{traffic[i][0]:,} / {traffic[i][1]:,}" for traffic in columns.values())] for i in range(count)
    ]
    widths = [max(len(row[i]) for row in (head, *table)) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in (head, *table)]
    naive_bytes = [sum(sum(comparison.naive[kind][i]) for kind in ("parameters", "gradients")) for i in (0, 1)]
    formula, ring, distances = central_bytes(size, count), ring_bytes(size, count), comparison.distances
    lines = ["bytes sent / received in a step", *lines, "", f"parameters: {size:,} bytes (Psi), {count} devices (N)"]
    lines += [
        f"naive, parameters and gradients: device 0 moves {naive_bytes[0]:,}; 2 (N - 1) Psi = {formula[0]:,}",
        f"                                 each other device {naive_bytes[1]:,}; 2 Psi = {formula[1]:,}",
        f"DDP: each device sends and receives {comparison.ddp['gradients'][0][0]:,}; 2 Psi (N - 1) / N = {ring:,}",
        f"parameters after {len(comparison.losses['DDP'])} steps, relative distance from those of one device: naive "
        f"{distances['naive']:.1e}, DDP {distances['DDP']:.1e}; initial parameters {distances['start']:.2g}",
    ]
    lines += [f"losses, {name}: {', '.join(f'{x:.6f}' for x in losses)}" for name, losses in comparison.losses.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
