"""SQuAD's exact match and F1 against cases worked by hand from its definition."""

import pytest

from jaxnlp.metrics.question_answering import exact_match, squad, token_f1


@pytest.mark.parametrize(
    ("text", "answers", "exact", "f1"),
    [
        ("The  Cat.", ["dog", "cat"], 1, 1),  # case, punctuation, articles and white space do not count
        ("cats", ["cat"], 0, 0),
        ("", [], 1, 1),  # no answer is the empty text
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("the black cat", ["cat"], 0, 2 / 3),  # precision 1/2, recall 1
        ("cat cat", ["cat"], 0, 2 / 3),  # a word counts as often as it is in both
        ("Denver Broncos", ["Denver", "the Denver Broncos team"], 0, 4 / 5),  # the best answer: 2/2 and 2/3
        ("U.S.", ["us"], 1, 1),  # punctuation is removed, not replaced by a space
        ("a", ["the"], 1, 1),  # both are empty after normalization
        ("well-known", ["well known"], 0, 0),
    ],
)
def test_an_answer(text, answers, exact, f1):
    assert exact_match(text, answers) == exact
    assert token_f1(text, answers) == pytest.approx(f1)


def test_a_split_has_the_means():
    scores = squad(["cat", "a black cat", ""], [["cat"], ["cat"], ["dog"]])
    assert scores == pytest.approx({"exact_match": 1 / 3, "f1": (1 + 2 / 3 + 0) / 3})
