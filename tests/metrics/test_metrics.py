"""Metrics by name, their confidence intervals, and metrics that are not from libraries."""

import numpy as np
import pytest
import sklearn.metrics

from jaxnlp.data.tasks.token_classification import TokenClassificationTask
from jaxnlp.errors import UserError
from jaxnlp.metrics.classification import accuracy, classification, correlation
from jaxnlp.metrics.generation import bleu, bleu_signature, exact, generation
from jaxnlp.metrics.metric import bootstrap_interval, metric_named
from jaxnlp.metrics.ranking import ranking
from jaxnlp.metrics.tagging import marks_entities, tagging


def test_an_interval_of_a_share_is_that_of_the_normal_approximation():
    predictions = [1] * 300 + [0] * 100
    (low, high) = bootstrap_interval(accuracy, predictions, [1] * 400, samples=400)["accuracy"]
    spread = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (low, high) == pytest.approx((0.75 - spread, 0.75 + spread), abs=0.25 * spread)
    assert bootstrap_interval(accuracy, predictions, [1] * 400, samples=20, seed=3) == bootstrap_interval(
        accuracy, predictions, [1] * 400, samples=20, seed=3
    )
    narrow = bootstrap_interval(accuracy, predictions, [1] * 400, samples=400, confidence=0.5)["accuracy"]
    assert narrow[1] - narrow[0] < 0.5 * (high - low)


def test_pairs_are_drawn_together():
    low, high = bootstrap_interval(accuracy, [*"abcd" * 5], [*"abcd" * 5], samples=50)["accuracy"]
    assert low == high == 1.0


def test_metrics_are_named_by_module_and_function():
    assert metric_named("jaxnlp.metrics.classification:accuracy") is accuracy
    for name in ("accuracy", "jaxnlp.metrics.classification:none", "no.module:f", "jaxnlp.metrics.ranking:TOP"):
        with pytest.raises(UserError, match=name):
            metric_named(name)


def test_constants_are_scored_without_a_correlation():
    assert classification(["x", "x"], ["x", "y"])["matthews"] == 0.0
    assert correlation([1.0, 1.0], [0.0, 2.0]) == {"pearson": 0.0, "spearman": 0.0, "mean_squared_error": 1.0}


def test_entities_are_scored_where_tags_mark_them():
    right = [["B-PER", "I-PER", "O"], ["O", "B-LOC"]]
    assert tagging(right, right) == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    half = tagging([["B-PER", "O", "O"], ["O", "B-LOC"]], right)  # part of an entity does not count
    assert half["f1"] == pytest.approx(1 / 2) and half["accuracy"] == pytest.approx(4 / 5)
    cut = tagging([["B-PER", "I-PER", "O"], ["O", None]], right)  # a word without a prediction counts as O
    assert cut["recall"] == pytest.approx(1 / 2) and cut["precision"] == 1.0 and cut["accuracy"] == pytest.approx(4 / 5)
    assert set(tagging([["noun"]], [["noun"]])) == {"accuracy"} and not marks_entities(["O"])


def test_entities_are_scored_by_the_classes_of_the_task_also_where_a_sample_has_none():
    task = TokenClassificationTask(classes=("B-PER", "O"))
    rows = [{"tags": ["O", "O"]}] * 8
    assert task.metrics(rows, rows) == {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    mixed = [*rows[:3], {"tags": ["B-PER"]}]  # of four draws one in three holds no entity
    low, high = bootstrap_interval(task.metrics, mixed, mixed, samples=50)["f1"]
    assert (low, high) == (0.0, 1.0)
    assert set(TokenClassificationTask(classes=("noun", "verb")).metrics(rows, rows)) == {"accuracy"}


def test_generated_texts_may_have_several_references():
    text = "the cat sat on the mat today"
    assert bleu([text], [["something else entirely here", text]]) == pytest.approx({"bleu": 100.0})
    assert bleu([text, text], [text, [text, "x"]]) == pytest.approx({"bleu": 100.0})
    assert exact([" a ", "b"], ["a", ["c", "d"]]) == {"exact_match": 0.5}
    assert set(generation([text], [text])) == {"bleu", "chrf", "exact_match"}
    assert "version:" in bleu_signature([text])


def test_ties_count_against_the_right_candidate():
    scores = ranking([[3.0, 1.0], [0.5, 0.5]], [0, 1])
    assert scores == {"accuracy": 0.5, "recall_at_1": 0.5, "mean_reciprocal_rank": pytest.approx((1 + 1 / 2) / 2)}
    assert ranking([[1.0, 2.0, 3.0, 4.0]], [1]) == {
        "accuracy": 0.0,
        "recall_at_1": 0.0,
        "recall_at_3": 1.0,
        "mean_reciprocal_rank": pytest.approx(1 / 3),
    }


def test_ranks_are_those_of_scikit_learn(rng):
    scores, right = rng.standard_normal((20, 12)), rng.integers(0, 12, 20)
    measured = ranking(scores.tolist(), right.tolist())
    for k in (1, 3, 10):
        wanted = sklearn.metrics.top_k_accuracy_score(right, scores, k=k, labels=np.arange(12))
        assert measured[f"recall_at_{k}"] == pytest.approx(wanted)
    assert measured["accuracy"] == sklearn.metrics.accuracy_score(right, scores.argmax(1))
    relevant = np.arange(12) == right[:, None]  # with one relevant candidate, average precision is the reciprocal rank
    wanted = sklearn.metrics.label_ranking_average_precision_score(relevant, scores)
    assert measured["mean_reciprocal_rank"] == pytest.approx(wanted)


def test_several_candidates_may_be_right():
    scores = ranking([[0.9, 0.1, 0.8, 0.5], [0.1, 0.9, 0.3, 0.4]], [[2, 1], [1]])
    assert scores == {
        "accuracy": 0.5,
        "mean_reciprocal_rank": 0.75,
        "recall_at_1": 0.5,  # 0 of 2, and 1 of 1
        "recall_at_3": 0.75,
    }
