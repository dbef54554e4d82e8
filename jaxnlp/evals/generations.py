"""The evaluator of generated texts."""

import dataclasses

from jaxnlp.errors import FieldError
from jaxnlp.evals.evaluator import EvaluatedModel, Outcome, RecordEvaluator
from jaxnlp.inference.scoring import LENGTH_MULTIPLE, filled


@dataclasses.dataclass(kw_only=True)
class GenerationEvaluator(RecordEvaluator):
    """The task's metrics of greedily generated texts, e.g. BLEU of translations.

    max_new_tokens: maximum number of tokens per text; None is the length of the task's targets.
    """

    max_new_tokens: int | None = None

    def check(self) -> None:
        super().check()
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise FieldError("max_new_tokens", self.max_new_tokens, "expected a positive number of tokens, or None")

    def evaluate(self, model: EvaluatedModel) -> Outcome:
        task, _, records = self.records(model)
        if task.output != "text":
            raise FieldError("data.task", type(task).__name__, f"{self.name!r} needs a task whose output is text")
        generator, data = dataclasses.replace(model.generator(), length_multiple=LENGTH_MULTIPLE), model.data
        prompts = [ids[: data.seq_len - 1] for ids in model.tokenizer.encode_batch([task.prompt(r) for r in records])]
        predictions = []
        for start in range(0, len(prompts), data.batch_size):
            model.between_batches()
            rows = prompts[start : start + data.batch_size]
            batch = filled(rows, data.batch_size)
            length = task.shapes(data)["targets"][0][0] if self.max_new_tokens is None else self.max_new_tokens
            texts = generator(model.params, batch, generator.fit_max_new_tokens(batch, length))
            for record, ids in zip(records[start:], texts[: len(rows)], strict=False):
                predictions.append(task.decode(record, [], [model.tokenizer.decode(ids)]))
        return self.outcome(task, records, predictions)
