"""A language model is scored on generated answers, as `Model.generate` writes them."""

import dataclasses
import json

import pytest

import jaxnlp
from jaxnlp import config as configs
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.multiple_choice import MultipleChoiceTask
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.errors import FieldError
from jaxnlp.evals.evaluator import EvaluatedModel
from jaxnlp.evals.generations import GenerationEvaluator
from jaxnlp.metrics.generation import generation
from tests.test_api import WORDS, write

POSITIONS, NEW = 24, 4
PROMPTS = [" ".join(WORDS[1 : 2 + i % 10]) for i in range(17)]
LONG = " ".join(WORDS[1:] * 2)  # 24 tokens


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A loaded language model of 24 positions, and an evaluator over PROMPTS."""
    folder = tmp_path_factory.mktemp("answers")
    write(folder, "gpt2")
    rows = [{"question": prompt, "answer": "a line"} for prompt in PROMPTS]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "long.jsonl").write_text("\n".join(map(json.dumps, [*rows[:1], {"question": LONG, "answer": "b"}])))
    source = Records(train=f"{folder}/rows.jsonl", validation=f"{folder}/rows.jsonl", test=f"{folder}/long.jsonl")
    task = TextPairs(source="question", target="answer")
    return jaxnlp.load(folder), GenerationEvaluator(name="qa", source=source, task=task, max_new_tokens=NEW)


def evaluated(model, log=lambda text: None):
    return EvaluatedModel(model.program, model.params, model.tokenizer, model.loaded.generator, log=log)


def texts(outcome):
    return [row["prediction"]["text"] for row in outcome.rows]


def test_answers_are_the_texts_after_their_prompts(opened):
    model, evaluator = opened
    assert model.experiment.data.batch_size == 16  # of 17 prompts, so that the second batch is padded
    outcome = evaluator.evaluate(evaluated(model))
    assert texts(outcome) == model.generate(PROMPTS, max_new_tokens=NEW, temperature=0.0)
    assert [row["reference"] for row in outcome.rows] == [{"text": "a line"}] * 17
    assert outcome.metrics == generation(texts(outcome), ["a line"] * 17)
    assert model.evaluate(limit=2, evaluators=[evaluator]).keys() == {f"qa/{name}" for name in outcome.metrics}
    longest = dataclasses.replace(evaluator, max_new_tokens=None)  # as many as the longest prompt leaves
    room = model.loaded.generator().fit_max_new_tokens(model.tokenizer.encode_batch(PROMPTS), POSITIONS)
    assert texts(longest.evaluate(evaluated(model))) == model.generate(PROMPTS, max_new_tokens=room, temperature=0.0)


def test_a_prompt_that_is_too_long_is_an_error_or_cut_on_the_side_that_a_field_names(opened):
    model, evaluator = opened
    evaluator = dataclasses.replace(evaluator, split="test")
    room = POSITIONS - len(model.loaded.generator().start_ids) - NEW
    error = f"truncate='none': 'qa': the prompt of .*long.jsonl:2 has 24 tokens, and {room} fit the 24 positions"
    with pytest.raises(FieldError, match=error):
        evaluator.evaluate(evaluated(model))
    words = LONG.split()
    for side, rest in (("left", words[-room:]), ("right", words[:room])):
        notes = []
        outcome = dataclasses.replace(evaluator, truncate=side).evaluate(evaluated(model, notes.append))
        assert texts(outcome) == model.generate([PROMPTS[0], " ".join(rest)], max_new_tokens=NEW, temperature=0.0)
        (note,) = notes
        assert note.startswith(f"note: evaluator 'qa': 1 prompts cut on the {side} to {room} tokens; the longest, ")


def test_what_it_cannot_generate_is_named(opened):
    model, evaluator = opened
    for changes, message in (
        (
            {"task": None},
            r"task=None: 'qa': the run's task is Packed\(\); expected a task whose output is text",
        ),
        ({"source": None}, "task='TextPairs': 'qa': expected a labelled task and source, as TextPairs"),
        ({"task": MultipleChoiceTask(num_options=2)}, "task='MultipleChoiceTask': its output is 'logits'; expected"),
        ({"truncate": "end"}, "truncate='end': expected 'none', 'left' or 'right'"),
        ({"truncate": "left", "task": None}, "truncate='left': needs a task; for the run's own task, set data.task"),
        ({"max_new_tokens": POSITIONS}, "max_new_tokens=24: 'qa': leaves no room for a prompt in the 24 positions"),
    ):
        changed = dataclasses.replace(evaluator, **changes)
        with pytest.raises(FieldError, match=message):
            configs.check(changed)
            changed.evaluate(evaluated(model))
