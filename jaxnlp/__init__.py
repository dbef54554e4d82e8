"""jaxnlp: a JAX research codebase for natural language processing, made to be read and forked.

  import jaxnlp

  model = jaxnlp.load("runs/tiny")            # a run, a folder in Hugging Face's layout, or a hub id
  print(model.generate("Once upon a time", max_new_tokens=40, temperature=0.8))

The public API, each name imported when it is first used:

  load(source, checkpoint="latest")     a trained model, as a `Model`
  train(experiment, workdir)            runs or resumes an experiment; returns a `Model`
  evaluate(source, split=None)          the metrics of a run; None: over the split of each evaluator
  load_config("configs/gpt/tiny.py")    the experiment of a config file
  prepare(experiment)                   the experiment with all fields resolved, and its tokenizer
  batches(experiment, tokenizer)        batches of a split, as host arrays
  build(experiment, devices=None)       the `Program` of a resolved experiment: initialisation and jitted steps
  estimate_memory(program)              bytes on each device: parameters, gradients, optimizer state, activations
  dry_run_report(program)               the report of `experiments.train --dry_run`
  architecture(experiment)              the modules and parameters of a model, for `figures.draw_architecture`
  configure_jax()                       allocator, dispatch and compile cache; call it before anything else uses JAX
  Model                                 generate, generations, predict, fill_mask, score, embed, evaluate, attention,
                                        report, merged, save, apply; params, config, tokenizer
  Experiment                            the config of a run
  UserError                             an error that a user can cause and fix
"""

from typing import TYPE_CHECKING

from jaxnlp import lazy

if TYPE_CHECKING:
    from jaxnlp.api import Model, architecture, batches, evaluate, load, load_config, train
    from jaxnlp.errors import UserError
    from jaxnlp.planning.dry_run import dry_run_report, estimate_memory
    from jaxnlp.runtime import configure_jax
    from jaxnlp.training.experiment import Experiment
    from jaxnlp.training.setup import prepare
    from jaxnlp.training.step.program import build

__version__ = "0.1.0"
__all__ = [
    "Experiment",
    "Model",
    "UserError",
    "architecture",
    "batches",
    "build",
    "configure_jax",
    "dry_run_report",
    "estimate_memory",
    "evaluate",
    "load",
    "load_config",
    "prepare",
    "train",
]

__getattr__, __dir__ = lazy.exports(
    __name__,
    {
        "Experiment": "training.experiment",
        "Model": "api",
        "UserError": "errors",
        "architecture": "api",
        "batches": "api",
        "build": "training.step.program",
        "configure_jax": "runtime",
        "dry_run_report": "planning.dry_run",
        "estimate_memory": "planning.dry_run",
        "evaluate": "api",
        "load": "api",
        "load_config": "api",
        "prepare": "training.setup",
        "train": "api",
    },
)
