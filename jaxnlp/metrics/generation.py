"""Metrics of generated texts: BLEU and chrF, thin wrappers over sacrebleu, and exact match.

A reference is a text, or a list of alternative texts.
"""

from collections.abc import Sequence
from typing import Any

from jaxnlp.metrics.metric import Scores

References = Sequence[str | Sequence[str]]


def bleu(predictions: Sequence[str], references: References) -> Scores:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002), with sacrebleu's defaults; see `bleu_signature`."""
    import sacrebleu

    return {"bleu": float(sacrebleu.BLEU().corpus_score([*predictions], _streams(references)).score)}


def bleu_signature(references: References) -> str:
    """sacrebleu's signature of `bleu`: its settings and version, to be reported with the score (Post 2018)."""
    import sacrebleu

    metric = sacrebleu.BLEU()
    metric.corpus_score([""] * len(references), _streams(references))
    return str(metric.get_signature())


def chrf(predictions: Sequence[str], references: References) -> Scores:
    """Corpus chrF, 0 to 100 (Popovic 2015): the F-score of character n-grams."""
    import sacrebleu

    return {"chrf": float(sacrebleu.CHRF().corpus_score([*predictions], _streams(references)).score)}


def exact(predictions: Sequence[str], references: References) -> Scores:
    """Share of predictions that equal one of their references, ignoring surrounding white space."""
    pairs = zip(predictions, references, strict=True)
    hits = [text.strip() in [right.strip() for right in _listed(reference)] for text, reference in pairs]
    return {"exact_match": sum(hits) / len(hits)}


def generation(predictions: Sequence[str], references: References) -> Scores:
    """BLEU, chrF and exact match."""
    return {**bleu(predictions, references), **chrf(predictions, references), **exact(predictions, references)}


def _listed(reference: str | Sequence[str]) -> list[str]:
    return [reference] if isinstance(reference, str) else [*reference]


def _streams(references: References) -> Any:
    """References in sacrebleu's layout: the k-th reference of each text, for each k; None if a text has fewer."""
    rows = [_listed(reference) for reference in references]
    return [[row[k] if k < len(row) else None for row in rows] for k in range(max(map(len, rows)))]
