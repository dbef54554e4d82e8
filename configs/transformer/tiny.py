"""A tiny encoder-decoder Transformer that maps a function's signature to a call; trains in minutes on two CPU cores.

  def dump(self, obj, fp, *, skipkeys=False)   ->   self.dump(obj, fp, skipkeys=skipkeys)

The signatures are those of the Python standard library. The decoder has to copy names from the source; its
cross-attention shows which ones (`experiments.attention_map`).

  python -m experiments.train --config=configs/transformer/tiny.py --workdir=runs/calls
  python -m experiments.generate --workdir=runs/calls --temperature=0 --prompt="def send(self, data, timeout=None)"
"""

from jaxnlp.data.corpora.stdlib_tasks import StdlibCalls
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.data.tokenizer import SentencePiece
from jaxnlp.evals.generations import GenerationEvaluator
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.optim import OptimConfig
from jaxnlp.training.experiment import Experiment


def get_config() -> Experiment:
    return Experiment(
        model=TransformerConfig(num_layers=2, num_heads=4, embed_dim=128, dropout_rate=0.0),
        data=DataConfig(
            source=StdlibCalls(),
            tokenizer=SentencePiece(vocab_size=512),
            task=TextPairs(truncate=True),
            seq_len=64,
            batch_size=32,
            prefetch_threads=0,
        ),
        objective=Seq2Seq(label_smoothing=0.1),
        optim=OptimConfig(learning_rate=2e-3, schedule="inverse_sqrt", warmup_steps=200, weight_decay=0.0, b2=0.98),
        num_steps=1500,
        log_every=20,
        eval_every=500,
        eval_batches=None,
        checkpoint_every=500,
        evaluators=(GenerationEvaluator(name="calls", limit=64),),
    )
