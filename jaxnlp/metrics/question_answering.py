"""Exact match and token F1 of answers, as defined by SQuAD.

Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1. The answer to an unanswerable question is the empty text
(Rajpurkar et al. 2018, arXiv:1806.03822).
"""

import collections
import re
import string
from collections.abc import Sequence

from jaxnlp.metrics.metric import Scores


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Means of `exact_match` and `token_f1`, in [0, 1]. A reference is a list of answers, [] if unanswerable."""
    pairs = list(zip(predictions, references, strict=True))
    scores = {"exact_match": exact_match, "f1": token_f1}
    return {name: sum(score(text, answers) for text, answers in pairs) / len(pairs) for name, score in scores.items()}


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 if a text equals one of the answers, ignoring case, punctuation, articles and white space; else 0."""
    return float(any(_normalized(text) == _normalized(answer) for answer in answers or [""]))


def token_f1(text: str, answers: Sequence[str]) -> float:
    """F1 (harmonic mean of precision and recall) of a text's words; the maximum over the answers."""
    return max(_f1(_normalized(text).split(), _normalized(answer).split()) for answer in answers or [""])


def _f1(words: list[str], answer_words: list[str]) -> float:
    if not words or not answer_words:
        return float(words == answer_words)
    num_common = sum((collections.Counter(words) & collections.Counter(answer_words)).values())
    return 2 * num_common / (len(words) + len(answer_words))


def _normalized(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
