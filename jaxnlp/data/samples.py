"""What a trained model does, as lines for the report of a run: the interface of `Task.sample`, and its defaults."""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnlp.data.text.sentinels import with_sentinels
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError
from jaxnlp.nn.model_config import ModelConfig

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig
    from jaxnlp.data.source import Record
    from jaxnlp.data.task import Batch
    from jaxnlp.data.tasks.encoding import Example

PAIRS_SHOWN = 4
WIDTH = 400  # characters of a text


class SampledModel(abc.ABC):
    """A trained model and a split of its data, as a task sees them.

    With several processes, all must make the same calls: the model runs on the full mesh.

    config, data, tokenizer: those of the run. store: the split's `TokenStore` or `RecordStore`.
    prompt, num_tokens: `Experiment.sample_prompt` and `sample_tokens`.
    """

    config: ModelConfig
    data: "DataConfig"
    tokenizer: Tokenizer
    store: Any
    prompt: str
    num_tokens: int

    @abc.abstractmethod
    def batches(self, limit: int | None = None) -> Iterator["Batch"]:
        """The batches of the split, each with all rows in every process; at most `limit` of them."""

    @abc.abstractmethod
    def run(self, function: Callable[[Callable, Any], Any], batch: "Batch") -> Any:
        """`function(apply, batch)` under jit, as host arrays. `apply(*arrays)` is the model's forward pass.

        The function is compiled once if it is the same object in each call, as a function of a module.
        """

    @abc.abstractmethod
    def generate(self, prompts: list[list[int]], max_new_tokens: int, **sampling: Any) -> list[list[int]]:
        """The new ids of each prompt, at most as many as the model has positions for.

        Args:
            sampling: fields of `inference.sampling.Sampling`, as temperature=0.8; none of them is greedy search.

        Raises:
            UserError: the model cannot generate, or a prompt is too long for it.
        """

    @abc.abstractmethod
    def predict(self, records: Sequence["Record"], examples: Sequence["Example"]) -> Iterator[dict[str, Any]]:
        """A labelled task's prediction for each record. examples: the task's examples of the records, in order."""


def continuation(model: SampledModel) -> list[str]:
    """The prompt and a text that the model draws after it; no lines for a model that cannot generate."""
    if not model.config.can_generate:
        return []
    try:
        prompt = model.tokenizer.encode_batch([model.prompt])[0]
        (ids,) = model.generate([prompt], model.num_tokens, temperature=0.8, top_p=0.95)
    except UserError as error:
        return ["", f"no sample: {error}"]
    text = model.tokenizer.decode([*prompt, *ids])
    return ["", f"a sample, from {model.prompt!r}:", "", *(f"  | {line}" for line in text.splitlines())]


def outputs_beside_targets(model: SampledModel) -> list[str]:
    """A few rows of the split, with their targets and the outputs of an encoder-decoder by greedy search."""
    (batch,) = model.batches(1)
    rows = [i for i in range(len(batch["inputs"])) if batch["weights"][i].sum() > 0]
    rows = rows[:: max(1, len(rows) // PAIRS_SHOWN)][:PAIRS_SHOWN]
    eos_id = model.tokenizer.eos_id
    text_ids = lambda ids, present: _without_end(ids[np.flatnonzero(present)].tolist(), eos_id)
    sources = [text_ids(batch["inputs"][i], batch["input_segments"][i]) for i in rows]
    targets = [text_ids(batch["targets"][i], batch["weights"][i]) for i in rows]
    outputs = model.generate(sources, min(model.num_tokens, batch["targets"].shape[1]))
    tokenizer = with_sentinels(model.tokenizer)
    lines = ["", "validation texts, their targets, and the model's outputs:"]
    for source, target, output in zip(sources, targets, outputs, strict=True):
        name = "right" if output == target else "model"
        lines += ["", f"  | {_line(tokenizer, source)}", f"  target {_line(tokenizer, target)}"]
        lines.append(f"  {name:6} {_line(tokenizer, output)}")
    return lines


def _without_end(ids: list[int], eos_id: int) -> list[int]:
    return ids[:-1] if ids and ids[-1] == eos_id else ids


def _line(tokenizer: Tokenizer, ids: list[int]) -> str:
    text = " ".join(tokenizer.decode(ids).split())
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def shown(piece: bytes | None, special: str) -> str:
    """A token's text without surrounding spaces; for whitespace its repr, for a special token `special`."""
    if piece is None:
        return special
    text = piece.decode(errors="replace")
    return text.strip() or repr(text)
