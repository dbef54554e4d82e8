"""Import a language model in Hugging Face's layout as a run with a checkpoint at step 0, for generation or training.

python -m experiments.import --source=path/to/gpt2 --workdir=runs/gpt2
python -m experiments.generate --workdir=runs/gpt2 --prompt="The"
python -m experiments.train --workdir=runs/gpt2 --config.num_steps=1000 --config.optim.learning_rate=1e-5

The model comes from --source. Data, optimizer and lengths come from --config=FILE, or are defaults.
"""

from absl import flags

from jaxnlp import cli, runtime
from jaxnlp.errors import UserError

SOURCE = flags.DEFINE_string("source", None, "Folder with config.json and *.safetensors, or a hub id.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the new run.")
CONFIG = cli.define_config()
EOS_TOKEN = flags.DEFINE_string("eos_token", None, "End-of-text token. Default: the one that the source's files name.")
IGNORE = flags.DEFINE_multi_string(
    "ignore", [], "Pattern of tensors to leave out, for example classifier.*. Repeat the flag for several."
)


def main() -> None:
    from jaxnlp.interop.huggingface import load, read_source
    from jaxnlp.training.init.import_run import create_run

    if SOURCE.value is None:
        raise UserError("--source: not given; expected a folder in Hugging Face's layout, or a hub id")
    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected a folder for the new run, for example runs/gpt2")
    model, params, tokenizer = load(SOURCE.value, ignore=IGNORE.value)
    if tokenizer is None:
        raise UserError(f"{SOURCE.value}: no tokenizer; expected tokenizer.json, or vocab.json with merges.txt")
    count = create_run(
        CONFIG.value,
        model,
        params,
        tokenizer,
        EOS_TOKEN.value,
        WORKDIR.value,
        read_source(SOURCE.value, ignore=IGNORE.value),
    )
    print(f"{type(model).__name__}, {count:,} parameters, written to {WORKDIR.value} as step 0. Next:")
    workdir = runtime.option("workdir", WORKDIR.value)
    print(f"  generate   {runtime.command('generate', workdir, runtime.option('prompt', 'The'))}")
    print(f"  train      {runtime.command('train', workdir, '--config.num_steps=1000')}")


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
