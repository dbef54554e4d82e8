"""Fill in masked words with a trained encoder.

python -m experiments.fill_mask --workdir=runs/bert --text="for i in [MASK](10):"
"""

from absl import flags

from jaxnlp import cli, runtime
from jaxnlp.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
TEXT = flags.DEFINE_multi_string(
    "text", [], "Text in which [MASK] marks each word to predict. Repeat the flag for several."
)
TOP = flags.DEFINE_integer("top", 5, "Number of predictions to print for each mask.")


def main() -> None:
    from jaxnlp.inference.fill_mask import fill_mask
    from jaxnlp.training.load import load

    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a trained encoder, for example runs/bert")
    if not TEXT.value:
        raise UserError('--text: not given; expected a text with a mask, for example --text="for i in [MASK](10):"')
    if TOP.value < 1:
        raise UserError(f"--top={TOP.value}: expected a positive number")
    run = load(WORKDIR.value, CHECKPOINT.value)
    for text in TEXT.value:
        masks = fill_mask(run.bound, run.params, text, TOP.value)
        print(text)
        for k, guesses in enumerate(masks):
            print(f"  mask {k + 1}")
            for guess in guesses:
                print(f"    {guess.probability:6.1%}  {'special token' if guess.piece is None else repr(guess.piece)}")


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
