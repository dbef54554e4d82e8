"""The Python API: a trained model as one object. Public names are listed in `jaxnlp/__init__.py`.

  model = jaxnlp.load("path/to/gpt2")
  print(model.generate(["Once upon a time"], max_new_tokens=20))
  print(model.score(["2 + 2 ="], [" 4"]))
  model.save("copy", format="huggingface")

Shape legend: B batch, T length.
"""

import dataclasses
import functools
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from jaxnlp import config as configs
from jaxnlp.data.checked_inputs import list_of_texts, record_fields
from jaxnlp.data.pipeline import TrainBatches, eval_batches, open_split
from jaxnlp.data.source import Record
from jaxnlp.data.special_text import with_special_tokens
from jaxnlp.data.tasks.labelled_task import LabelledTask
from jaxnlp.data.text.sentinels import with_sentinels
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.evaluate_model import evaluate_model
from jaxnlp.evals.evaluator import EvaluatedModel, Evaluator
from jaxnlp.evals.predictions import predict
from jaxnlp.figures.architecture import Box, tree
from jaxnlp.inference.attention_maps import AttentionMap, attention_maps
from jaxnlp.inference.decode import Generation
from jaxnlp.inference.embedding import BATCH, Embedder
from jaxnlp.inference.fill_mask import Guess, fill_mask
from jaxnlp.inference.sampling import Sampling
from jaxnlp.inference.scoring import encode_scored, score_continuations
from jaxnlp.inference.text import encode_inputs, generate_text
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.paths import local
from jaxnlp.peft.files import fingerprint
from jaxnlp.sharding.functional import parameter_table
from jaxnlp.training import export
from jaxnlp.training.chat import as_chat
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.feeds import Feed
from jaxnlp.training.hooks import Hook
from jaxnlp.training.load import Loaded
from jaxnlp.training.load import load as load_run
from jaxnlp.training.loops import supervised
from jaxnlp.training.open_huggingface import open_huggingface
from jaxnlp.training.report import report
from jaxnlp.training.run_folder.checkpoint import Reader, Saved
from jaxnlp.training.setup import Setup
from jaxnlp.training.step.program import build
from jaxnlp.trees import select


def load(source: str | pathlib.Path, checkpoint: str | int = "latest") -> "Model":
    """Loads a trained model onto this machine's devices.

    Args:
        source: a run's folder, a folder in Hugging Face's layout, or a hub id, which needs `huggingface_hub`.
        checkpoint: the checkpoint of a run: "latest", "best" or a step.

    Raises:
        UserError: nothing to load at `source`, or a damaged checkpoint.
    """
    if not isinstance(source, (str, pathlib.Path)):
        raise UserError(f"load: {source!r}: expected the path of a folder, or a hub id")
    if Reader(source).steps():
        return Model(load_run(source, str(checkpoint)), str(source))
    if checkpoint != "latest":
        raise UserError(f"load: checkpoint={checkpoint!r}: {source} is a single model; only a run has checkpoints")
    return Model(open_huggingface(source), str(source))


def train(
    experiment: Experiment | None,
    workdir: str | pathlib.Path,
    *,
    hooks: Sequence[Hook] = (),
    make_feed: Callable[[Setup], Feed] | None = None,
) -> "Model":
    """Runs an experiment in a folder, or resumes the run in that folder, and returns the trained model.

    Args:
        experiment: None takes the one of the folder's newest checkpoint.
        hooks: actions between steps besides those of the experiment, as `Samples(every=100)` of `training/hooks.py`.
        make_feed: returns the source of the batches (`training/feeds.py`); None reads the train split.

    Raises:
        UserError: a config that cannot run or resume, a folder in use, a full disk, a loss that is not finite.
    """
    if experiment is not None and not isinstance(experiment, Experiment):
        expected = "expected an Experiment, as jaxnlp.load_config('configs/gpt/tiny.py') returns, or None to resume"
        raise UserError(f"train: got {type(experiment).__name__}; {expected}")
    result = supervised.train(experiment, workdir, hooks=hooks, make_feed=make_feed)
    saved = Saved(int(result.state.step), result.experiment, result.tokenizer, {}, {})
    return Model(Loaded(saved, result.program, result.state.all_params), str(workdir), result)


def evaluate(
    source: str | pathlib.Path,
    split: str | None = None,
    checkpoint: str | int = "latest",
    evaluators: Sequence[str | Evaluator] | None = None,
) -> dict[str, float]:
    """The metrics of a run's evaluators; see `Model.evaluate`."""
    return load(source, checkpoint).evaluate(split, evaluators=evaluators)


def load_config(path: str) -> Experiment:
    """The experiment of a config file, as "configs/gpt/tiny.py" or "configs/gpt/gpt2.py:xl"."""
    from jaxnlp import cli

    return cli.load(path)


def batches(
    experiment: Experiment, tokenizer: Tokenizer, split: str = "validation", limit: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of a split as host arrays: of "train" without end and in the run's order, of another split once.

    Args:
        experiment, tokenizer: from `prepare`. limit: maximum number of batches; None: no limit.
    """
    store = open_split(experiment.data, split, tokenizer)
    if split == "train":
        return itertools.islice(TrainBatches(store, experiment.data, tokenizer=tokenizer), limit)
    return eval_batches(store, experiment.data, limit, tokenizer=tokenizer)


def architecture(experiment: Experiment) -> Box:
    """The modules of a resolved experiment's model in call order, with their parameters' shapes and logical axes."""
    model, name = experiment.model, type(experiment.model).__name__.removesuffix("Config")
    # Scanning and remat do not change the parameters. Without them the table lists modules in call order.
    if model.scan_layers is not None:
        model = model.with_body(scan_layers=False, remat="none")
    return tree(name, parameter_table(model.build(), *model.example_inputs(1, experiment.data.seq_len)))


class Model:
    """A model with its parameters and tokenizer.

    Attributes:
        experiment: the config of the run; for an imported model, a default one. step: the checkpoint's step.
        program: the experiment over this machine's devices. result: the result of `train`; None for a loaded model.
    """

    def __init__(self, loaded: Loaded, source: str, result: supervised.Result | None = None):
        self.loaded, self.source, self.result = loaded, source, result
        self.experiment, self.step, self.program = loaded.saved.experiment, loaded.saved.step, loaded.program

    @property
    def config(self) -> ModelConfig:
        """The model's config, as `GPTConfig`."""
        return self.experiment.model

    @property
    def params(self) -> Any:
        """All parameters, as nested dicts of arrays."""
        return self.loaded.params

    @property
    def tokenizer(self) -> Tokenizer:
        return self.loaded.saved.tokenizer

    def apply(self, params: Any, *inputs: Any, **arguments: Any) -> Any:
        """The model's forward pass: `apply(model.params, tokens_BT)`. May be jitted and differentiated."""
        with self.program.context(any_length=True, inside_jit=True, batch=None):
            return self.program.apply(params, *inputs, **arguments)

    @overload
    def generate(self, texts: str, max_new_tokens: int = ..., **options: Any) -> str: ...
    @overload
    def generate(self, texts: Sequence[str], max_new_tokens: int = ..., **options: Any) -> list[str]: ...
    def generate(self, texts: str | Sequence[str], max_new_tokens: int = 64, **options: Any) -> str | list[str]:
        """Continues each text; an encoder-decoder writes an output for each input.

        Args:
            texts: prompts. A single string gives a single string. With special_tokens=True, names of special tokens
                in them become the tokens.
            max_new_tokens: maximum number of new tokens per text; reduced if the model has fewer positions left.
            options: temperature (0.0: greedy), top_k, top_p, min_p, repetition_penalty and min_new_tokens, as in
                `Sampling`; seed, stop, forced_prefix, on_text and chunk, as in `generate_text`.

        Returns:
            the new text of each prompt, without the prompt.

        Raises:
            UserError: the model cannot generate; an unknown or invalid option.
        """
        prompts = [texts] if isinstance(texts, str) else texts
        generated = [str(generation.text) for generation in self.generations(prompts, max_new_tokens, **options)]
        return generated[0] if isinstance(texts, str) else generated

    def chat(self, messages: str | Sequence[Mapping[str, Any]], max_new_tokens: int = 256, **options: Any) -> str:
        """The assistant's answer in a conversation, which the chat template of an imported model lays out.

        Args:
            messages: as [{"role": "user", "content": "Hi"}]; or the text of one user's message.
            max_new_tokens, options: as for `generate`.

        Raises:
            UserError: the model has no chat template, or the template does not accept the messages.
        """
        return str(self._continued(*as_chat(self.loaded, self._generator, [messages]), max_new_tokens, options)[0].text)

    def generations(
        self, texts: Sequence[str], max_new_tokens: int = 64, *, special_tokens: bool = False, **options: Any
    ) -> list[Generation]:
        """As `generate`, but returns each text with its tokens, their log-probabilities and the reason why it ended."""
        texts = list_of_texts("generate", "texts", texts)
        tokenizer = with_special_tokens(self.tokenizer) if special_tokens else self._generation_tokenizer
        return self._continued(self._generator, tokenizer, texts, max_new_tokens, options)

    def _continued(
        self, generator: Any, tokenizer: Tokenizer, texts: list[str], max_new_tokens: int, options: dict[str, Any]
    ) -> list[Generation]:
        if max_new_tokens < 1:
            raise FieldError("max_new_tokens", max_new_tokens, "expected a positive number")
        option_names = [*TEXT_OPTIONS, *(field.name for field in dataclasses.fields(Sampling))]
        for name in sorted(set(options) - set(option_names)):
            raise UserError(f"generate: no option {name!r}{configs.did_you_mean(name, option_names)}")
        text_options = {name: value for name, value in options.items() if name in TEXT_OPTIONS}
        sampling = Sampling(**{name: value for name, value in options.items() if name not in TEXT_OPTIONS})
        if not texts:
            return []
        inputs = encode_inputs(generator, tokenizer, texts, text_options.get("forced_prefix", ""))
        num_tokens = generator.fit_max_new_tokens(inputs.prompts, max_new_tokens, inputs.prefixes)
        return generate_text(generator, tokenizer, self.params, texts, num_tokens, sampling, **text_options)

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        """The log-probability of each continuation given its prompt, in nats, summed over its tokens.

        A decoder reads them as one text: a token across their border is scored. The end of the text is not.

        Raises:
            UserError: the model cannot generate; different numbers of prompts and continuations; a text too long.
        """
        prompts = list_of_texts("score", "prompts", prompts)
        continuations = list_of_texts("score", "continuations", continuations)
        if len(prompts) != len(continuations):
            counts = f"{len(prompts)} prompts for {len(continuations)} continuations"
            raise UserError(f"score: {counts}; expected one per prompt")
        generator, size = self._generator, max(1, min(BATCH, len(prompts)))
        ids = encode_scored(generator, self._generation_tokenizer, list(zip(prompts, continuations, strict=True)))
        rows = score_continuations(generator, self.params, *ids, size)
        return [sum(row) for row in rows]

    def predict(self, records: Sequence[dict[str, Any] | str]) -> list[Any]:
        """A fine-tuned model's answers: labels with probabilities, tags, spans, options or numbers.

        Args:
            records: dicts of the fields that the run's task reads; or texts, for a task that reads a single text.

        Raises:
            UserError: the model was not fine-tuned with a head on labelled records; a record lacks a field of the task.
        """
        task, data = self.experiment.data.task, self.experiment.data
        if not isinstance(task, LabelledTask):
            reason = f"its task is {type(task).__name__}(); expected a run fine-tuned on records, which has a task head"
            raise self._cannot("predict", f"{reason}; train one from this model, as configs/bert/finetune.py does")
        if task.output != "logits":
            raise self._cannot("predict", f"its task, {type(task).__name__}(), has texts as answers; use generate")
        if isinstance(records, (str, dict)):
            raise UserError(f"predict: records={records!r}: expected a list of records, as [{records!r}]")
        parsed = [Record(f"records[{i}]", record_fields(task, record)) for i, record in enumerate(records)]
        note = functools.partial(print, file=sys.stderr)
        examples = task.encode(parsed, self.tokenizer, data.seq_len, note, labelled=False)
        return list(predict(self.program, self.params, self.tokenizer, parsed, examples))

    def fill_mask(self, text: str, top: int = 5) -> list[list[Guess]]:
        """The `top` most likely tokens at each mask of a text, for an encoder with a masked-word head.

        Raises:
            UserError: another kind of model; a text without a mask, or too long.
        """
        list_of_texts("fill_mask", "text", [text])
        return fill_mask(self.loaded.bound, self.params, text, top)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 embeddings of N texts: the mean of the last layer's states over each text's tokens.

        Raises:
            UserError: a model that is not a decoder or an encoder, or is fine-tuned; a text that is too long.
        """
        body = self.config.body
        if body.kind not in ("decoder", "encoder"):
            raise self._cannot("embed", f"its kind is {body.kind!r}; expected a decoder or an encoder")
        texts = list_of_texts("embed", "texts", texts)
        if texts and body is not self.config:
            reason = f"{type(self.config).__name__} is fine-tuned; load the pretrained model instead"
            raise self._cannot("embed", reason)
        return self._embedder(self.params, texts)

    def evaluate(
        self, split: str | None = None, limit: int | None = None, evaluators: Sequence[str | Evaluator] | None = None
    ) -> dict[str, float]:
        """The loss and the objective's metrics, and each other evaluator's as "NAME/METRIC", as "squad/f1".

        Args:
            split, limit: of every evaluator (limit: batches for the loss, records for others); None: its own.
            evaluators: names, "module:name", or `jaxnlp.evals` objects; None: the loss and those of the run.

        Raises:
            UserError: an unknown split or name; an imported model, and an evaluator that has no source of its own.
        """
        has_data = self.step > 0 or self.result is not None or bool(Reader(self.source).steps())
        model = EvaluatedModel(self.program, self.params, self.tokenizer, lambda: self._generator)
        return evaluate_model(model, split, limit, evaluators, has_data)

    def attention(self, text: str, target: str | None = None) -> list[AttentionMap]:
        """The weights of every attention layer for a text, which `figures.draw_attention` plots.

        Args:
            target: the decoder's text of an encoder-decoder, or the second text of an encoder's pair.

        Raises:
            UserError: a model without attention; a text that is too long; a target that is missing or not supported.
        """
        list_of_texts("attention", "text", [text] if target is None else [text, target])
        return attention_maps(self.loaded.bound, self.params, text, target)

    def report(self) -> str:
        """The report of a run that `train` has just ended. Also plots its curves. Raises UserError for other models."""
        if self.result is None or self.result.signal is not None:
            raise self._cannot("report", "expected the result of train() for a run that has finished")
        return report(self.result, local(self.source))

    def merged(self) -> "Model":
        """The model with its tuned parameters merged into its base: the same outputs, without a PEFT method.

        Raises:
            UserError: full fine-tuning, or a method that cannot be merged.
        """
        tuning = self.program.tuning
        if tuning is None:
            raise self._cannot("merged", "expected a run with a PEFT method")
        experiment = dataclasses.replace(self.experiment, peft=None, init_from=None, init_peft_from=None)
        saved = dataclasses.replace(self.loaded.saved, experiment=experiment)
        params = tuning.merge(select(self.params, tuning.shapes), select(self.params, self.program.abstract.params))
        return Model(
            dataclasses.replace(self.loaded, saved=saved, program=build(experiment), params=params), self.source
        )

    def base_fingerprint(self) -> str:
        """A hash of the parameters that a PEFT run does not train. Each checkpoint of the run holds it.

        Raises:
            UserError: full fine-tuning.
        """
        if self.program.tuning is None:
            raise self._cannot("base_fingerprint", "expected a run with a PEFT method")
        return fingerprint(select(self.params, self.program.abstract.frozen))

    def save(self, path: str | pathlib.Path, format: str = "huggingface") -> None:
        """Writes the model, or what a PEFT method tuned.

        Args:
            format: "huggingface": a folder that `load` and transformers' from_pretrained read, with tuned parameters
                merged. "peft": a folder with the adapter of the model's body, which PEFT's from_pretrained reads.
                "safetensors": all tuned parameters as one file, which `peft.files.load` reads.

        Raises:
            UserError: an unknown format, or a model or method that the layout does not support.
        """
        path = local(path)
        if format == "huggingface":
            export.save(self.loaded, path)
        elif format not in ("peft", "safetensors"):
            raise UserError(
                f"save: format={format!r} is not supported; expected 'huggingface', 'peft' or 'safetensors'"
            )
        elif self.program.tuning is None:
            raise self._cannot("save", f"format={format!r} needs a run with a PEFT method")
        else:
            export.save_tuned(self.loaded, path, as_file=format == "safetensors")

    @functools.cached_property
    def _generator(self) -> Any:
        return self.loaded.generator()

    @property
    def _generation_tokenizer(self) -> Tokenizer:
        """The tokenizer for generation, in which an encoder-decoder's texts may name sentinels."""
        return with_sentinels(self.tokenizer) if self.config.kind == "encoder-decoder" else self.tokenizer

    @functools.cached_property
    def _embedder(self) -> Embedder:
        return Embedder(self.loaded.bound)

    def _cannot(self, method: str, reason: str) -> UserError:
        return UserError(f"{method}: {self.source}, a {type(self.config).__name__}: {reason}")


TEXT_OPTIONS = ("seed", "stop", "forced_prefix", "on_text", "chunk")
