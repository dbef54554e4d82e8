"""The tiny GPT with a sharding preset of `jaxnlp/sharding/presets.py`. The variant is PRESET or PRESET,AXIS=SIZE,...

JAX_NUM_CPU_DEVICES=8 python -m experiments.train --config=configs/gpt/parallel.py:ZERO3 --workdir=runs/zero3
JAX_NUM_CPU_DEVICES=8 python -m experiments.train --config=configs/gpt/parallel.py:TP,data=2,tensor=4 --dry_run

With PP and DP_PP_TP the layers are scanned, so that they can be split into stages, and a batch has four microbatches.
"""

from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.text.sources import PythonStdlib
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.errors import UserError
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.nn.positions import Rotary
from jaxnlp.optim import OptimConfig
from jaxnlp.sharding.mesh import AXES
from jaxnlp.sharding.presets import PRESETS
from jaxnlp.training.experiment import Experiment


def get_config(variant: str = "DDP") -> Experiment:
    name, *sizes = variant.split(",")
    mesh_sizes = {axis: size for axis, _, size in (part.partition("=") for part in sizes)}
    if name not in PRESETS or not all(a in AXES and size.lstrip("-").isdigit() for a, size in mesh_sizes.items()):
        raise UserError(
            f"configs/gpt/parallel.py:{variant}: expected PRESET or PRESET,AXIS=SIZE, such as TP,data=2,tensor=4; "
            f"presets: {', '.join(PRESETS)}; axes: {', '.join(AXES)}"
        )
    mesh = {axis: int(size) for axis, size in mesh_sizes.items()}
    sharding = PRESETS[name].over(**mesh) if mesh else PRESETS[name]
    staged = sharding.pipeline is not None
    return Experiment(
        model=GPTConfig(num_layers=4, num_heads=8, embed_dim=192, positions=Rotary(), scan_layers=staged),
        data=DataConfig(
            source=PythonStdlib(),
            tokenizer=SentencePiece(vocab_size=2048),
            seq_len=128,
            batch_size=8,
            prefetch_threads=0,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=100),
        sharding=sharding,
        accum_steps=4 if staged else 1,
        num_steps=1500,
        log_every=20,
        eval_every=500,
        eval_batches=40,
        checkpoint_every=500,
        sample_prompt="def main",
        sample_tokens=120,
    )
