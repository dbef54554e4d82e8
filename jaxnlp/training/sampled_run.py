"""A run's model as its task sees it, for samples and reports."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxnlp.data.pipeline import eval_batches
from jaxnlp.data.samples import SampledModel
from jaxnlp.data.source import Record
from jaxnlp.data.tasks.encoding import Example
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.evals.predictions import predict
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.inference.loop import replicate
from jaxnlp.inference.sampling import Sampling
from jaxnlp.training.step.program import Program


class SampledRun(SampledModel):
    """The model of a program with these parameters, and a split's store."""

    def __init__(self, program: Program, params: Any, tokenizer: Tokenizer, store: Any):
        e = program.experiment
        self.config, self.data, self.tokenizer, self.store = e.model, e.data, tokenizer, store
        self.prompt, self.num_tokens = e.sample_prompt, e.sample_tokens
        self._program, self._params = program, params
        self._generator = functools.cache(lambda: make_generator(program.bind(tokenizer)))
        self._jitted = functools.cache(self._jit)

    def with_params(self, params: Any) -> "SampledRun":
        """The model with other parameters. It shares the compiled programs."""
        model = copy.copy(self)
        model._params = params
        return model

    def lines(self) -> list[str]:
        """The task's sample; no lines if `Experiment.sample_tokens` is 0."""
        return self.data.task.sample(self) if self.num_tokens else []

    def batches(self, limit: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        return eval_batches(self.store, self.data, limit, tokenizer=self.tokenizer)

    def run(self, function: Callable[[Callable, Any], Any], batch: dict[str, np.ndarray]) -> Any:
        local = {name: x[self._program.local_row_indices] for name, x in batch.items()}
        with self._program.context(any_length=True):
            return jax.tree.map(np.asarray, self._jitted(function)(self._params, self._program.shard_batch(local)))

    def _jit(self, function: Callable[[Callable, Any], Any]) -> Callable[[Any, Any], Any]:
        apply = self._program.apply

        def call(params: Any, batch: Any) -> Any:
            return jax.tree.map(replicate, function(lambda *x, **kw: apply(params, *x, **kw), batch))

        return jax.jit(call)

    def generate(self, prompts: list[list[int]], max_new_tokens: int, **sampling: Any) -> list[list[int]]:
        generator = self._generator()
        room = generator.fit_max_new_tokens(prompts, max_new_tokens)
        return generator(self._params, prompts, room, Sampling(**sampling), seed=self._program.experiment.seed)

    def predict(self, records: Sequence[Record], examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        return predict(self._program, self._params, self.tokenizer, records, examples)
