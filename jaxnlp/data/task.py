"""The base class of tasks: how the text or the records of a source become batches.

Text tasks (`data/text/`) cut a store of tokens into examples; labelled tasks (`data/tasks/`) make examples of records.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jaxnlp.data.source import Source
from jaxnlp.data.tasks.layout import Layout
from jaxnlp.data.tokenizer import Tokenizer
from jaxnlp.errors import UserError

if TYPE_CHECKING:
    from jaxnlp.data.pipeline import DataConfig

Batch = dict[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], Any]]


class Reader(abc.ABC):
    """The examples of an opened store: `len(reader)` of them, `reader[index]` a record of one, `batch` their arrays."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        return int(index)

    @abc.abstractmethod
    def batch(self, records: Sequence[Any], indices: Sequence[int]) -> Batch:
        """The arrays of some examples. A record of None is a row of weight 0.

        Args:
            indices: the examples' positions in the run's global sequence. Anything random is drawn from them, so that
                it is the same after a resumption and in every process.
        """


@dataclasses.dataclass(kw_only=True)
class Task(abc.ABC):
    """What a `DataConfig` makes of its source. A text task defines `open` and `shapes`; see `LabelledTask` for records.

    unit: what a weight of 1 counts, in reports. is_labelled: reads records rather than text.
    output: what a model predicts for a record: "logits" of a head, a generated "text", or None for text tasks.
    encoder_decoder: batches have `inputs` for an encoder beside the decoder's `tokens`.
    packs_documents: puts several documents into one row.
    layout, classes, num_sequences: of a labelled task: how texts become sequences, the names of its classes, and how
        many sequences an example has.
    cls, sep, mask, decoder_start_token: names of special tokens that the task puts into sequences; None: not used.
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
        """The reader of a split's store. Tasks that need the tokenizer raise UserError without it."""

    @abc.abstractmethod
    def shapes(self, config: "DataConfig") -> Shapes:
        """Shape (without the batch) and dtype of each array of a batch."""

    def resolved(self, source: Source) -> "Task":
        """The task with what depends on the source filled in, as the names of classes."""
        return self

    def predicted_fraction(self, config: "DataConfig") -> float:
        """Share of the positions at which the model predicts a token of the vocabulary."""
        return 1.0


def require_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        raise UserError("data.task: needs the tokenizer; pass it to TrainBatches or eval_batches")
    return tokenizer
