"""The evaluator of generated texts."""

import dataclasses
from collections.abc import Sequence

from jaxnlp.data.source import Record
from jaxnlp.data.tasks.labelled_task import LabelledTask
from jaxnlp.errors import FieldError
from jaxnlp.evals.evaluator import EvaluatedModel, Outcome, RecordEvaluator
from jaxnlp.inference.decode import Generator
from jaxnlp.inference.scoring import LENGTH_MULTIPLE, filled
from jaxnlp.inference.text import continuation

EXAMPLE = "TextPairs(source='question', target='answer')"


@dataclasses.dataclass(kw_only=True)
class GenerationEvaluator(RecordEvaluator):
    """The task's metrics of greedily generated texts, e.g. BLEU of translations.

    task: how the records are read, for a run that trains on another task, as a language model on text:
        TextPairs(source="question", target="answer"). A language model continues the source text, and an
        encoder-decoder reads it. None: the run's task.
    max_new_tokens: maximum number of tokens per text; None is the length of the task's targets, or what the longest
        prompt leaves of the model's positions.
    truncate: which end of a prompt that is too long is cut, "left" or "right"; "none": such a prompt is an error. For
        the run's own task, the task's `truncate` decides.
    """

    task: LabelledTask | None = None
    max_new_tokens: int | None = None
    truncate: str = "none"

    def check(self) -> None:
        super().check()
        if self.task is not None and self.task.output != "text":
            expected = f"its output is {self.task.output!r}; expected a task whose output is text, as {EXAMPLE}"
            raise FieldError("task", type(self.task).__name__, expected)
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise FieldError("max_new_tokens", self.max_new_tokens, "expected a positive number of tokens, or None")
        if self.truncate not in ("none", "left", "right"):
            raise FieldError("truncate", self.truncate, "expected 'none', 'left' or 'right'")
        if self.task is None and self.truncate != "none":
            raise FieldError("truncate", self.truncate, "needs a task; for the run's own task, set data.task.truncate")

    def evaluate(self, model: EvaluatedModel) -> Outcome:
        generator, data = dataclasses.replace(model.generator(), length_multiple=LENGTH_MULTIPLE), model.data
        task, records = self._task_and_records(model)
        prompts = self._prompts(model, generator, task, records)
        length = task.shapes(data)["targets"][0][0] if self.max_new_tokens is None else self.max_new_tokens
        length = generator.fit_max_new_tokens(prompts, length)
        predictions = []
        for start in range(0, len(prompts), data.batch_size):
            model.between_batches()
            rows = prompts[start : start + data.batch_size]
            texts = generator(model.params, filled(rows, data.batch_size), length)
            for record, prompt, ids in zip(records[start:], rows, texts, strict=False):
                text = continuation(model.tokenizer, [] if generator.encoder_decoder else prompt, ids)
                predictions.append(task.decode(record, [], [text]))
        return self.outcome(task, records, predictions)

    def _task_and_records(self, model: EvaluatedModel) -> tuple[LabelledTask, list[Record]]:
        if self.task is not None:
            return self.records_of(model, self.task, EXAMPLE)
        name = type(model.data.task).__name__
        if model.data.task.output != "text":
            expected = f"the run's task is {name}(); expected a task whose output is text, as {EXAMPLE}"
            raise FieldError("task", self.task, f"{self.name!r}: {expected}")
        task, _, records = self.records(model)
        return task, records

    def _prompts(
        self, model: EvaluatedModel, generator: Generator, task: LabelledTask, records: Sequence[Record]
    ) -> list[list[int]]:
        """The prompts' tokens. Raises FieldError for one that is too long, unless `truncate` says how to cut it."""
        prompts = model.tokenizer.encode_batch([task.prompt(record) for record in records])
        if self.task is None and generator.encoder_decoder:  # longer ones are an error of the task, or truncated by it
            return [ids[: model.data.seq_len - 1] for ids in prompts]
        limit = generator.length_limit
        if limit is None:
            return prompts
        new_tokens = 1 if self.max_new_tokens is None else self.max_new_tokens
        added = generator.source_end_ids if generator.encoder_decoder else generator.start_ids
        room = limit - len(added) - (0 if generator.encoder_decoder else new_tokens)
        if room < 1:
            expected = f"{self.name!r}: leaves no room for a prompt in the {limit} positions of the model; lower it"
            raise FieldError("max_new_tokens", self.max_new_tokens, expected)
        too_long = [(len(ids), record.where) for ids, record in zip(prompts, records, strict=True) if len(ids) > room]
        if not too_long:
            return prompts
        size, longest = max(too_long)
        if self.truncate == "none":
            reason = f"the prompt of {longest} has {size} tokens, and {room} fit the {limit} positions of the model"
            remedy = "lower max_new_tokens, or set truncate='left' or 'right' to cut that end of long prompts"
            raise FieldError("truncate", self.truncate, f"{self.name!r}: {reason}; {remedy}")
        count = f"{len(too_long):,} prompts cut on the {self.truncate} to {room} tokens"
        model.log(f"note: evaluator {self.name!r}: {count}; the longest, {longest}, had {size}")
        return [ids[-room:] if self.truncate == "left" else ids[:room] for ids in prompts]
