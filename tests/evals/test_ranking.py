"""A language model ranks candidates by the scores of `Model.score`."""

import dataclasses
import json

import numpy as np
import pytest

import jaxnlp
from jaxnlp import config as configs
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.multiple_choice import MultipleChoiceTask
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.errors import FieldError
from jaxnlp.evals.evaluator import EvaluatedModel
from jaxnlp.evals.rankings import RankingEvaluator
from jaxnlp.metrics.ranking import ranking
from tests.test_api import write

ROWS = [  # candidates of different lengths
    {"context": "a line of", "options": ["words", "long line", "not one"], "label": 1},
    {"context": "one", "options": ["two", "line of words that is", "b"], "label": 0},
    {"context": "b b", "options": ["c", "a", "c c c"], "label": 2},
    {"context": "that is not", "options": ["long", "one", "two words"], "label": 0},
    {"context": "words", "options": ["a b c", "of", "is"], "label": 1},
]
OPTIONS = [option for row in ROWS for option in row["options"]]


def size(predictions, references):
    """A metric that reports the arguments of its call."""
    return {"size": len(predictions[0]) if references == [1] else -1}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A loaded language model, and an evaluator over ROWS."""
    folder = tmp_path_factory.mktemp("ranked")
    write(folder, "gpt2")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    source = Records(train=f"{folder}/rows.jsonl", validation=f"{folder}/rows.jsonl")
    model = jaxnlp.load(folder)
    model.experiment.data.batch_size = 8  # fewer than the candidates
    return model, RankingEvaluator(name="next", source=source, task=MultipleChoiceTask(num_options=3))


def evaluated(model, between_batches=lambda: None):
    loaded = model.loaded
    return EvaluatedModel(
        model.program, model.params, model.tokenizer, loaded.generator, between_batches=between_batches
    )


def test_candidates_are_ranked_by_their_log_probability(opened):
    model, evaluator = opened
    batches = []
    outcome = evaluator.evaluate(evaluated(model, lambda: batches.append(1)))
    scores = [row["prediction"]["scores"] for row in outcome.rows]
    prompts, texts = [row["context"] for row in ROWS for _ in range(3)], [" " + option for option in OPTIONS]
    wanted = model.score([*prompts, "a", "b"], [*texts, "a", "b"])  # in two batches of 16
    assert len(wanted) == 17
    wanted = wanted[:15]
    np.testing.assert_allclose(np.ravel(scores), wanted, rtol=1e-5)
    assert len(batches) == 2 and outcome.metrics == ranking(scores, [row["label"] for row in ROWS])
    assert [row["reference"] for row in outcome.rows] == [row["label"] for row in ROWS]
    assert [row["prediction"]["candidate"] for row in outcome.rows] == np.argmax(scores, 1).tolist()

    lengths = {"tokens": [len(option.split()) for option in OPTIONS], "bytes": [len(option) for option in OPTIONS]}
    for normalize, length in lengths.items():
        variant = dataclasses.replace(evaluator, normalize=normalize, limit=1, metrics=(f"{__name__}:size",))
        outcome = variant.evaluate(evaluated(model))
        (row,) = outcome.rows
        np.testing.assert_allclose(row["prediction"]["scores"], np.divide(wanted[:3], length[:3]), rtol=1e-5)
        assert outcome.metrics["size"] == 3
    outcome = dataclasses.replace(evaluator, separator=" is ", limit=1).evaluate(evaluated(model))
    wanted = model.score(prompts[:3], [" is " + option for option in OPTIONS[:3]])
    np.testing.assert_allclose(outcome.rows[0]["prediction"]["scores"], wanted, rtol=1e-5)


def test_classes_are_candidates_too(opened):
    model, evaluator = opened
    rows = [{"text": row["context"], "label": word} for row, word in zip(ROWS, ["one", "two", "one"], strict=False)]
    path = evaluator.source.train.replace("rows", "classes")
    with open(path, "w") as file:
        file.write("\n".join(map(json.dumps, rows)))
    source, task = Records(train=path, validation=path), SequenceClassificationTask(classes=("one", "two"))
    outcome = dataclasses.replace(evaluator, source=source, task=task).evaluate(evaluated(model))
    wanted = model.score(["a line of", "a line of"], [" one", " two"])
    np.testing.assert_allclose(outcome.rows[0]["prediction"]["scores"], wanted, rtol=1e-5)
    assert [row["reference"] for row in outcome.rows] == [0, 1, 0]


def test_a_ranking_stops_between_batches_and_says_what_it_needs(opened):
    class Stop(Exception):
        pass

    def stop():
        raise Stop

    model, evaluator = opened
    with pytest.raises(Stop):
        evaluator.evaluate(evaluated(model, stop))
    for changes, message in (
        ({"task": None}, r"task='Packed': 'next': expected a labelled task and source, as MultipleChoiceTask\(\)"),
        ({"source": None}, "task='MultipleChoiceTask': 'next': expected a labelled task and source, .* and Records"),
        ({"task": TextPairs(source="context")}, "task='TextPairs': 'next': the task defines no candidates to rank"),
        ({"normalize": "words"}, "normalize='words': expected 'none', 'tokens' or 'bytes'"),
    ):
        changed = dataclasses.replace(evaluator, **changes)
        with pytest.raises(FieldError, match=message):
            configs.check(changed)
            changed.evaluate(evaluated(model))
