"""Draw a model's architecture from its parameter table: one box per module, with shapes, logical axes and counts.

python -m experiments.figures.architecture --config=configs/gpt/gpt2.py:small --out=gpt2.png
python -m experiments.figures.architecture --config=configs/gpt/tiny.py --config.model.num_layers=8 --out=deep.png
"""

import re
import sys

from absl import flags

from jaxnlp import cli, distributed, runtime
from jaxnlp.errors import UserError
from jaxnlp.paths import local

CONFIG = cli.define_config()
OUT = flags.DEFINE_string("out", None, "PNG file to write.")


def main() -> None:
    from jaxnlp import architecture
    from jaxnlp import config as configs
    from jaxnlp.figures.architecture import draw_architecture
    from jaxnlp.figures.files import save_png
    from jaxnlp.training.setup import prepare

    if CONFIG.value is None:
        raise UserError("--config: not given; expected a config file, or --config_json=FILE")
    if OUT.value is None or not OUT.value.lower().endswith(".png"):
        raise UserError(f"--out={OUT.value}: expected a file name that ends in .png")
    experiment = CONFIG.value
    if experiment.model.vocab_size is None:  # filled in from the tokenizer, which may have to be trained first
        experiment, _ = prepare(experiment)
    configs.check(experiment)
    root = architecture(experiment)
    out = local(OUT.value)
    save_png(draw_architecture(root, f"{root.name}, {config_name()}"), out)
    print(f"written: {out} ({root.count:,} parameters)")


def config_name() -> str:
    """The name of the config on the command line with its variant, without its folder."""
    matches = re.findall(r"^--config(?:_json)?=([^:\n]*)(.*)$", "\n".join(sys.argv), re.M)
    path, variant = matches[-1] if matches else ("", "")
    return local(path).name + variant


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__, by=distributed.FIRST)
