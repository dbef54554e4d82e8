"""Export a trained run in Hugging Face's layout, for transformers' from_pretrained and compatible tools.

python -m experiments.export --workdir=runs/gpt2 --out=exported/gpt2
python -m experiments.export --workdir=runs/lora --out=exported/lora --adapter   # for PEFT, beside its base
python -m experiments.export --workdir=runs/lora --out=lora.safetensors --adapter   # any method, for peft.files.load

Without --adapter, a PEFT run is exported with its adapter merged into the base, if its method supports merging.
"""

from typing import Any

from absl import flags

from jaxnlp import cli, distributed, runtime
from jaxnlp.errors import UserError
from jaxnlp.paths import local

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step.")
OUT = flags.DEFINE_string(
    "out", None, "Output folder; an existing checkpoint is overwritten. With --adapter, may be a .safetensors file."
)
ADAPTER = flags.DEFINE_bool(
    "adapter", False, "Export only the adapter, in PEFT's layout; as one file if OUT ends in .safetensors."
)
BASE = flags.DEFINE_string(
    "base_name", None, "With --adapter: hub id or folder of the base model for PEFT. Default: the path in init_from."
)
SHARD = flags.DEFINE_float("max_shard_gb", 5.0, "Maximum size of a file in gigabytes; larger checkpoints are split.")


def main() -> None:
    from jaxnlp.data.pretrained_tokenizer import FILE
    from jaxnlp.training.export import save
    from jaxnlp.training.load import load

    if WORKDIR.value is None:
        raise UserError("--workdir: not given; expected the folder of a trained run, for example runs/gpt2")
    if OUT.value is None:
        raise UserError("--out: not given; expected a folder to write, for example exported/gpt2")
    if not SHARD.value > 0:
        raise UserError(f"--max_shard_gb={SHARD.value}: expected a positive number of gigabytes")
    run, out = load(WORKDIR.value, CHECKPOINT.value), local(OUT.value)
    if ADAPTER.value:
        if run.program.tuning is None:
            raise UserError(
                f"--adapter: {WORKDIR.value} has no adapter, as all parameters were trained; remove the flag"
            )
        write_adapter(out, run)
        return
    if BASE.value is not None:
        raise UserError(f"--base_name={BASE.value}: applies to adapters only; expected --adapter with it")
    has_tokenizer = save(run, out, int(SHARD.value * 1e9))
    if not distributed.first():
        return
    print(f"step {run.saved.step:,} written to {out}:")
    for path in sorted(out.iterdir()):
        print(f"  {path.name:36} {path.stat().st_size:>15,} bytes")
    if not has_tokenizer:
        kind = type(run.saved.tokenizer).__name__
        print(f"note: no tokenizer.json, as the layout does not support {kind}; jaxnlp.load reads {FILE} instead")


def write_adapter(out: Any, run: Any) -> None:
    """Writes a run's adapter as a PEFT folder, or as one file if `out` ends in .safetensors."""
    from jaxnlp.training.export import save_tuned

    as_file, init_from = out.suffix.lower() == ".safetensors", run.saved.experiment.init_from
    dropped = save_tuned(run, out, BASE.value, as_file=as_file)
    if not distributed.first():
        return
    reader = "jaxnlp.peft.files.load" if as_file else "PEFT's from_pretrained"
    source = BASE.value or (init_from and init_from.path)
    print(f"step {run.saved.step:,}: adapter of {source} written to {out}, for {reader}")
    if dropped:
        names = ", ".join(dropped)
        print(f"note: the adapter covers the body only; the head's parameters {names} remain in {WORKDIR.value}")


if __name__ == "__main__":
    runtime.configure_jax()
    cli.run(main, __doc__)
