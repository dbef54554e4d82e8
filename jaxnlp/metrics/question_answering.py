"""Exact match and F1 of answers, as SQuAD defines them.

Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1; Rajpurkar et al. 2018, arXiv:1806.03822 for questions without an
answer, whose answer is the empty text.
"""

import collections
import re
import string
from collections.abc import Sequence

from jaxnlp.metrics.metric import Scores


def squad(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Means, in [0, 1], of `exact_match` and `token_f1`. A reference is a list of right answers, [] for none."""
    pairs = list(zip(predictions, references, strict=True))
    scores = {"exact_match": exact_match, "f1": token_f1}
    return {name: sum(score(text, answers) for text, answers in pairs) / len(pairs) for name, score in scores.items()}


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 if a text is one of the answers, apart from case, punctuation, articles and white space."""
    return float(any(_normalized(text) == _normalized(answer) for answer in answers or [""]))


def token_f1(text: str, answers: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of a text's words, against the answer with the highest."""
    return max(_f1(_normalized(text).split(), _normalized(answer).split()) for answer in answers or [""])


def _f1(words: list[str], right: list[str]) -> float:
    if not words or not right:
        return float(words == right)
    same = sum((collections.Counter(words) & collections.Counter(right)).values())
    return 2 * same / (len(words) + len(right))


def _normalized(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
