"""Base class of tasks, which turn the text or the records of a source into batches.

Text tasks (`data/text/`) cut a token store into examples. Labelled tasks (`data/tasks/`) encode records.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxnlp.data.baselines import Baseline, unigram_of_targets
from jaxnlp.data.samples import SampledModel, continuation, outputs_beside_targets
from jaxnlp.data.source import Source
from jaxnlp.data.tasks.layout import Layout
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError
from jaxnlp.nn.model_config import ModelConfig
from jaxnlp.runtime import option

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig

Batch = dict[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], Any]]


class Reader(abc.ABC):
    """Random access to the examples of an opened store.

    `len(reader)` is the number of examples, `reader[index]` reads one, and `batch` collates several into arrays.
    """

    @abc.abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        return int(index)

    @abc.abstractmethod
    def batch(self, records: Sequence[Any], indices: Sequence[int]) -> Batch:
        """Collates examples into the arrays of a batch.

        Args:
            records: what `reader[index]` returned for each row. None is a row of weight 0.
            indices: the position of each example in the run's global sequence. Random draws are seeded by it, so that
                they are the same after resuming and in every process.
        """


@dataclasses.dataclass(kw_only=True)
class Task(abc.ABC):
    """How a `DataConfig` turns its source into examples.

    A text task defines `open` and `shapes`. For tasks over records, see `LabelledTask`.

    unit: name of what a weight of 1 counts, for reports. is_labelled: whether the task reads records rather than text.
    output: what a model predicts for a record: the "logits" of a head, a generated "text", or None for text tasks.
    encoder_decoder: whether batches have `inputs` for an encoder as well as the decoder's `tokens`.
    packs_documents: whether a row may hold several documents.
    layout, classes, num_sequences: for labelled tasks, how texts are joined into sequences, the class names, and the
        number of sequences of an example.
    cls, sep, mask, decoder_start_token: names of the special tokens that the task adds; None if not used.
    """

    unit: ClassVar[str] = "tokens"
    is_labelled: ClassVar[bool] = False
    output: ClassVar[str | None] = None
    encoder_decoder: ClassVar[bool] = False
    packs_documents: ClassVar[bool] = False
    layout: ClassVar[Layout | None] = None
    classes: ClassVar[tuple[str, ...]] = ()
    num_sequences: ClassVar[int] = 1
    cls: ClassVar[str | None] = None
    sep: ClassVar[str | None] = None
    mask: ClassVar[str | None] = None
    decoder_start_token: ClassVar[str | None] = None

    @abc.abstractmethod
    def open(self, store: Any, tokenizer: Tokenizer | None, config: "DataConfig") -> Reader:
        """Opens a reader on a split's store. Raises UserError if the task needs the tokenizer and it is None."""

    @abc.abstractmethod
    def shapes(self, config: "DataConfig") -> Shapes:
        """Shape (without the batch axis) and dtype of each array of a batch."""

    def resolved(self, source: Source) -> "Task":
        """Returns the task with the fields that depend on the source filled in, such as the class names."""
        return self

    def predicted_fraction(self, config: "DataConfig") -> float:
        """Fraction of the positions at which the model predicts a token of the vocabulary."""
        return 1.0

    def sample(self, model: SampledModel) -> list[str]:
        """Lines for the end of a run that show what the trained model does. The first line is empty.

        By default a text that continues `Experiment.sample_prompt`, or an encoder-decoder's outputs beside the targets.
        """
        return outputs_beside_targets(model) if self.encoder_decoder else continuation(model)

    def baselines(self, model: SampledModel) -> list[Baseline]:
        """Baselines for the report of a run, computed from the split.

        By default that of the frequencies of `targets`; no baseline if the batches have no `targets`.
        """
        if not {"targets", "weights"} <= set(self.shapes(model.data)):
            return []
        entropy, share = unigram_of_targets(model.batches(), model.tokenizer.vocab_size)
        return [Baseline("unigram of the targets", entropy, accuracy=share)]

    def next_commands(self, model: ModelConfig, prompt: str) -> list[tuple[str, str, str]]:
        """Commands that a report proposes: (what it does, a program of `experiments`, its options but --workdir).

        Args:
            prompt: a text for the options.
        """
        if model.can_generate:
            return [("generate", "generate", option("prompt", prompt))]
        return [("evaluate", "evaluate", "--split=test")]


def require_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise UserError("data.task: needs the tokenizer; pass it to TrainBatches or eval_batches")
    return tokenizer
