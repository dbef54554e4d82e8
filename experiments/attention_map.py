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
from jaxnlp.paths import local

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
TEXT = flags.DEFINE_string("text", None, "Input text; for an encoder-decoder, the encoder input.")
TARGET = flags.DEFINE_string(
    "target", None, "Decoder input of an encoder-decoder, or the second text of an encoder's pair."
)
PARTS = flags.DEFINE_list("parts", None, "Parts to draw, for example decoder/cross_attention. Default: all.")
LAYERS = flags.DEFINE_list("layers", None, "Indices of the layers to draw, for example 0,3. Default: all.")
HEADS = flags.DEFINE_list("heads", None, "Indices of the heads to draw. Default: all.")
OUT = flags.DEFINE_string("out", None, "PNG file to write. Default: WORKDIR/attention_map.png.")


def main() -> None:
    from jaxnlp.figures.attention import draw_attention
    from jaxnlp.figures.files import save_png
    from jaxnlp.inference.attention_maps import attention_maps, habits, select
    from jaxnlp.training.load import load

    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a trained run, for example runs/tiny")
    if not TEXT.value:
        raise UserError('--text: not given; expected a text, for example --text="def main"')
    layers, heads = numbers("layers", LAYERS.value), numbers("heads", HEADS.value)
    out = local(OUT.value or f"{WORKDIR.value}/attention_map.png")
    if out.suffix.lower() != ".png":
        raise UserError(f"--out={out}: expected a file name that ends in .png")
    model = load(WORKDIR.value, CHECKPOINT.value)
    maps_by_name = {
        attention_map.name: attention_map
        for attention_map in attention_maps(model.bound, model.params, TEXT.value, TARGET.value)
    }
    for name in PARTS.value or ():
        if name not in maps_by_name:
            raise UserError(f"--parts={name}: no such part; expected one of {', '.join(maps_by_name)}")
    maps = [select(maps_by_name[name], layers, heads) for name in PARTS.value or maps_by_name]
    if distributed.first():
        save_png(draw_attention(maps, f"{WORKDIR.value}, step {model.saved.step:,}"), out)
    print(f"written: {out}")
    for attention_map in maps:
        rows = habits(attention_map)
        heading = "; for each pattern, the head with the most weight" if rows else ""
        print(f"\n{attention_map.name}, {len(attention_map.queries)} x {len(attention_map.keys)} tokens{heading}")
        for place, layer, head, weight in rows:
            print(f"  {place:40} layer {layer}, head {head}: mean weight {weight:.2f}")


def numbers(flag: str, values: list[str] | None) -> list[int] | None:
    """Parses the numbers of a list flag; None if the flag is not given. Raises UserError for other values."""
    if values is None:
        return None
    if not values or not all(value.strip().isdigit() for value in values):
        raise UserError(f"--{flag}={','.join(values)}: expected numbers from 0, for example 0,3")
    return [int(value) for value in values]


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
