"""Metrics of tagged words: accuracy, and F1 of entities in IOB tags, a thin wrapper over seqeval."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxnlp.metrics.classification import accuracy
from jaxnlp.metrics.metric import Scores

PREFIXES = ("B-", "I-", "E-", "S-", "L-", "U-")
OUTSIDE = "O"


def marks_entities(tags: Iterable[str]) -> bool:
    """Whether the tags belong to an IOB-like scheme, as "B-PER", "I-PER" and "O"."""
    tags = set(tags)
    return all(tag == OUTSIDE or tag.startswith(PREFIXES) for tag in tags) and tags != {OUTSIDE}


def entities(predictions: Sequence[Sequence[str | None]], references: Sequence[Sequence[str]]) -> Scores:
    """Precision, recall and F1 of entities, micro-averaged as in CoNLL-2003. A tag of None is outside any entity."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    tags = [[OUTSIDE if tag is None else tag for tag in row] for row in predictions]
    pair = [[*row] for row in references], tags
    scores: dict[str, Any] = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    return {name: float(score(*pair, zero_division=0)) for name, score in scores.items()}


def tagging(
    predictions: Sequence[Sequence[str | None]],
    references: Sequence[Sequence[str]],
    classes: Iterable[str] | None = None,
) -> Scores:
    """Accuracy over words, and the scores of `entities` for IOB tags. A predicted tag of None counts as wrong.

    classes: the tags of the scheme, which decide whether entities are scored, also in a sample without any, where
        seqeval's scores are 0; None: the tags of the references decide.
    """
    predicted = [str(tag) for row in predictions for tag in row]
    correct = [tag for row in references for tag in row]
    scores = accuracy(predicted, correct)
    marked = marks_entities(correct if classes is None else classes)
    return {**scores, **entities(predictions, references)} if marked else scores
