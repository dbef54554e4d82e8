"""Draw how a sharding table splits the matrices of a model's block over the tensor axis, and the communication.

python -m experiments.figures.split --config=configs/gpt/gpt2.py:small --preset=TP --ways=4 --out=split.png

Without --preset it draws the config's own table. It uses the first block with attention and a feed-forward layer.
"""

import dataclasses
from typing import Any

from absl import flags

from jaxnlp import cli, distributed, runtime
from jaxnlp.errors import UserError
from jaxnlp.paths import local

CONFIG = cli.define_config()
PRESET = flags.DEFINE_string(
    "preset", None, "Preset of jaxnlp/sharding/presets.py, for example TP. Default: the config's table."
)
WAYS = flags.DEFINE_integer("ways", 4, "Number of devices along the tensor axis.")
OUT = flags.DEFINE_string("out", None, "PNG file to write.")

TIMES = "\N{MULTIPLICATION SIGN}"


def main() -> None:
    from jaxnlp import config as configs
    from jaxnlp.figures.files import save_png
    from jaxnlp.figures.parallelism import draw_split
    from jaxnlp.sharding.presets import PRESETS
    from jaxnlp.training.setup import prepare

    if CONFIG.value is None:
        raise UserError("--config: not given; expected a config file, or --config_json=FILE")
    if OUT.value is None or not OUT.value.lower().endswith(".png"):
        raise UserError(f"--out={OUT.value}: expected a file name that ends in .png")
    if WAYS.value < 2:
        raise UserError(f"--ways={WAYS.value}: expected at least two devices")
    if PRESET.value is not None and PRESET.value not in PRESETS:
        near = configs.did_you_mean(PRESET.value, list(PRESETS))
        raise UserError(f"--preset={PRESET.value}: no such preset{near}; expected one of {', '.join(PRESETS)}")
    experiment = CONFIG.value
    if getattr(experiment.model, "vocab_size", None) is None:
        experiment, _ = prepare(experiment)
    configs.check(experiment)
    sharding = experiment.sharding if PRESET.value is None else PRESETS[PRESET.value]
    layers = split_layers(experiment.model, sharding, WAYS.value)
    name = PRESET.value or "the config's table"
    if sharding.pipeline is not None and not any(piece.split for row in layers.values() for piece in row):
        raise UserError(f"{name}: splits layers but no matrix; draw its schedule with experiments.figures.pipeline")
    save_png(draw_split(layers, WAYS.value, f"{name} over {WAYS.value} devices"), local(OUT.value))
    print(f"written: {OUT.value}")


def split_layers(model: Any, sharding: Any, ways: int) -> dict[str, list[Any]]:
    """The rows of the figure: attention and feed-forward layer of the model's first block.

    Raises:
        UserError: the model has no such block, or a size is not divisible by `ways`.
    """
    from jaxnlp.sharding.functional import parameter_table
    from jaxnlp.sharding.rules import as_tuple

    if model.scan_layers is not None:
        model = model.with_body(scan_layers=False, remat="none")
    table = parameter_table(model.build(), *model.example_inputs(1, 8))
    kernels = {row[0][-3:-1]: row for row in reversed(table) if row[0][-1] == "kernel"}
    layers = {}
    for name, first, last, inputs, between in BLOCKS:
        parts = [kernels[part] for part in first if part in kernels]
        if not parts or last not in kernels:
            raise UserError(f"--config: {type(model).__name__} has no block of attention and a feed-forward layer")
        pieces = [matrix(part, 1, sharding, ways) for part in parts]
        out = matrix(kernels[last], inputs, sharding, ways)
        sequence = "tensor" in as_tuple(sharding.activations.get("residual"))
        layers[name] = layer(pieces, between, out, sequence)
    return layers


# For each layer: its name, input matrices, output matrix, input dimensions of the latter, and the operation between.
BLOCKS = (
    ("attention", [("attention", n) for n in ("query", "key", "value")], ("attention", "out"), 2, "softmax"),
    ("feed-forward", [("mlp", n) for n in ("gate", "up")], ("mlp", "down"), 1, "activation"),
)


def matrix(kernel: Any, inputs: int, sharding: Any, ways: int) -> Any:
    """A kernel as a matrix of the figure. Its first `inputs` dimensions are the rows."""
    from jaxnlp.figures.parallelism import Piece
    from jaxnlp.sharding.mesh import AXES
    from jaxnlp.sharding.rules import as_tuple, resolve_spec

    path, shape, axes = kernel
    spec = resolve_spec("/".join(path), axes, shape, sharding.params, {**dict.fromkeys(AXES, 1), "tensor": ways})
    places = [i for i, mesh_axes in enumerate(spec) if "tensor" in as_tuple(mesh_axes)]
    split_axis = None if not places else "rows" if places[0] < inputs else "columns"
    labels = [f"{axis} {size}" for axis, size in zip(axes, shape, strict=True)]
    return Piece(path[-2], f"{' '.join(labels[:inputs])}\n{TIMES} {' '.join(labels[inputs:])}", split_axis)


def layer(first: list[Any], between: str, last: Any, sequence: bool) -> list[Any]:
    """The pieces of a row of the figure: x, input matrices, hidden, output matrix and y, with the communication."""
    from jaxnlp.figures.parallelism import Piece

    arrow = lambda forward, backward: f"forward: {forward}\nbackward: {backward}"
    gather, scatter = ("all-gather", "reduce-scatter") if sequence else ("nothing", "all-reduce")
    split, note = ("rows" if sequence else None), "a part of the tokens" if sequence else "every token"
    enter = arrow(gather, scatter) if first[-1].split == "columns" else TIMES
    leave = arrow("reduce-scatter" if sequence else "all-reduce", gather) if last.split == "rows" else "="
    pieces = [dataclasses.replace(piece, after=",") for piece in first[:-1]]
    pieces += [dataclasses.replace(first[-1], after=between)]
    hidden = Piece("hidden", "every token", first[-1].split, TIMES)
    return [
        Piece("x", note, split, enter),
        *pieces,
        hidden,
        dataclasses.replace(last, after=leave),
        Piece("y", note, split),
    ]


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
