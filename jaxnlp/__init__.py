"""jaxnlp: a JAX research codebase for natural language processing, made to be read and forked.

  import jaxnlp

  model = jaxnlp.load("runs/tiny")            # a run, a folder in Hugging Face's layout, or a hub id
  print(model.generate("def main", max_new_tokens=40, temperature=0.8))

The public API, each name imported when it is first used:

  load(source, checkpoint="latest")     a trained model, as a `Model`
  train(experiment, workdir)            runs or resumes an experiment; returns a `Model`
  evaluate(source, split="validation")  the metrics of a run over a split
  load_config("configs/gpt/tiny.py")    the experiment of a config file
  configure_jax()                       allocator, dispatch and compile cache; call it before anything else uses JAX
  Model                                 generate, predict, fill_mask, score, embed, evaluate, attention, save
  Experiment                            the config of a run
  UserError                             an error that a user can cause and fix
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxnlp.api import Model, evaluate, load, load_config, train
    from jaxnlp.errors import UserError
    from jaxnlp.runtime import configure_jax
    from jaxnlp.training.experiment import Experiment

__version__ = "0.1.0"
__all__ = ["Experiment", "Model", "UserError", "configure_jax", "evaluate", "load", "load_config", "train"]

_MODULES = {
    "Experiment": "jaxnlp.training.experiment",
    "Model": "jaxnlp.api",
    "UserError": "jaxnlp.errors",
    "configure_jax": "jaxnlp.runtime",
    "evaluate": "jaxnlp.api",
    "load": "jaxnlp.api",
    "load_config": "jaxnlp.api",
    "train": "jaxnlp.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxnlp' has no attribute {name!r}; its public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_MODULES[name]), name)  # the lazy import of PEP 562


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
