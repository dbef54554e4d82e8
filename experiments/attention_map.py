"""Draw the attention maps of a trained run for a text.

  python -m experiments.attention_map --workdir=runs/tiny --text="def main(argv):"
  python -m experiments.attention_map --workdir=runs/bert --text="the list" --target="is empty" --layers=0,3
  python -m experiments.attention_map --workdir=runs/translate --text="ein Hund" --target="a dog"

--target is the decoder input of an encoder-decoder, or the second text of an encoder's pair. The figure of an
encoder-decoder has three parts: encoder self-attention, decoder self-attention and cross-attention.
"""

from absl import flags

from jaxnlp import cli, distributed, runtime
from jaxnlp.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
TEXT = flags.DEFINE_string("text", None, "Text to look at; an encoder-decoder's source.")
TARGET = flags.DEFINE_string("target", None, "Text of the decoder, or the second one of an encoder's pair.")
PARTS = flags.DEFINE_list("parts", None, "Parts to draw, as decoder/cross_attention; by default all.")
LAYERS = flags.DEFINE_list("layers", None, "Layers to draw, from 0, as 0,3; by default all.")
HEADS = flags.DEFINE_list("heads", None, "Heads to draw, from 0; by default all.")
OUT = flags.DEFINE_string("out", None, "PNG to write; by default WORKDIR/attention_map.png.")


def main() -> None:
    import pathlib

    from jaxnlp.figures.attention import draw
    from jaxnlp.figures.files import save_png
    from jaxnlp.inference.attention_maps import attention_maps, habits, select
    from jaxnlp.training.load import load

    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a trained run, as runs/tiny")
    if not TEXT.value:
        raise UserError('--text: not given; expected a text to look at, as --text="def main"')
    layers, heads = numbers("layers", LAYERS.value), numbers("heads", HEADS.value)
    out = pathlib.Path(OUT.value or f"{WORKDIR.value}/attention_map.png")
    if out.suffix != ".png":
        raise UserError(f"--out={out}: expected a name that ends in .png")
    run = load(WORKDIR.value, CHECKPOINT.value)
    whole = {found.name: found for found in attention_maps(run.bound, run.params, TEXT.value, TARGET.value)}
    for name in PARTS.value or ():
        if name not in whole:
            raise UserError(f"--parts={name}: the model has {', '.join(whole)}")
    maps = [select(whole[name], layers, heads) for name in PARTS.value or whole]
    if distributed.first():
        save_png(draw(maps, f"{WORKDIR.value}, step {run.saved.step:,}"), out)
    print(f"written: {out}")
    for found in maps:
        shown = habits(found)
        told = "; the head that most looks at" if shown else ""
        print(f"\n{found.name}, {len(found.queries)} x {len(found.keys)} tokens{told}")
        for place, layer, head, weight in shown:
            print(f"  {place:40} layer {layer}, head {head}: {weight:.2f} of its weight")


def numbers(flag: str, values: list[str] | None) -> list[int] | None:
    """Parses the numbers of a list flag; None if the flag is not given. Raises UserError for other values."""
    if values is None:
        return None
    if not values or not all(value.strip().isdigit() for value in values):
        raise UserError(f"--{flag}={','.join(values)}: expected numbers from 0, as 0,3")
    return [int(value) for value in values]


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
