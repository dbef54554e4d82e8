"""Predictions for records in batches, also with several windows per record, and their display after a run."""

import contextlib
import dataclasses
import json
import math
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnlp.data import pipeline
from jaxnlp.data.baselines import Baseline
from jaxnlp.data.records import Record, Records
from jaxnlp.data.tasks.inputs import Pair
from jaxnlp.data.tasks.regression import RegressionTask
from jaxnlp.data.tasks.samples import verdict
from jaxnlp.data.tasks.sequence_classification import SequenceClassificationTask
from jaxnlp.data.tasks.span_extraction import SpanExtractionTask
from jaxnlp.data.tokenizer import Bytes, ByteTokenizer
from jaxnlp.evals.predictions import make_predict_step, predict
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.gpt import GPTConfig
from jaxnlp.objectives.regression import Regression
from jaxnlp.objectives.sequence_classification import SequenceClassification
from jaxnlp.sharding.mesh import MeshConfig
from jaxnlp.sharding.rules import Sharding
from jaxnlp.training import sampled_run
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.hooks import Samples
from jaxnlp.training.init.pretrained import Pretrained
from jaxnlp.training.report import next_commands, table
from jaxnlp.training.sampled_run import SampledRun
from jaxnlp.training.step.program import build

BYTES = ByteTokenizer(("[CLS]", "[SEP]"))


def program(data, apply) -> Any:
    """The part of a program that prediction uses; `apply` returns the logits of a batch."""
    apply_with_params = lambda params, tokens, **kwargs: {"logits": apply(tokens, **kwargs)}
    return types.SimpleNamespace(
        experiment=Experiment(model=GPTConfig(), data=data),
        local_row_indices=slice(None),
        shard_batch=lambda batch: batch,
        context=lambda **_: contextlib.nullcontext(),
        apply=apply_with_params,
        predict_step=jax.jit(make_predict_step(apply_with_params)),
    )


def opened(folder, examples, rows):
    for name in ("train", "validation"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Records(train=str(folder / "train.jsonl"), validation=str(folder / "validation.jsonl"))
    data = pipeline.DataConfig(
        source=source, tokenizer=Bytes(special_tokens=("[CLS]", "[SEP]")), task=examples, seq_len=16, batch_size=4
    )
    return data, pipeline.open_split(data, "validation", BYTES)


def test_records_are_answered_in_order_whatever_the_batches():
    task = SequenceClassificationTask(classes=("x", "y"))
    data = pipeline.DataConfig(task=task, seq_len=8, batch_size=4)
    records = [Record(f"r:{i}", {"text": "xy"[i % 3 == 1]}) for i in range(10)]
    examples = task.encode(records, BYTES, 8, print, labelled=False)
    says = lambda tokens, **_: jnp.stack([tokens[:, 0, 1] == ord("x"), tokens[:, 0, 1] == ord("y")], -1) * 9.0
    answers = list(predict(program(data, says), None, BYTES, records, examples))
    assert [a["label"] for a in answers] == [record.fields["text"] for record in records]


def test_windows_of_a_record_are_one_answer():
    task = SpanExtractionTask(stride=3)
    data = pipeline.DataConfig(task=task, seq_len=12, batch_size=4)
    texts = ["abcXdefghijkl", "ab", "abcdefghijklmnoXpq", "abcdefgh"]
    records = [Record(f"r:{i}", {"question": "?", "context": text}) for i, text in enumerate(texts)]
    examples = task.encode(records, BYTES, 12, print, labelled=False)
    assert len(examples) > 8  # more than two batches, and records across batch boundaries

    def says(tokens, token_type_ids, segment_ids):  # X, or else the [CLS]
        logits = jnp.where(tokens == ord("X"), 5.0, 0.0) + jnp.where(tokens == BYTES.special_id("[CLS]"), 1.0, 0.0)
        return jnp.stack([logits, logits], -1)

    answers = list(predict(program(data, says), None, BYTES, records, examples))
    assert [a["answer"] for a in answers] == ["X", "", "X", ""]
    assert [a["start"] for a in answers] == [3, None, 15, None]


def test_the_baseline_knows_the_frequencies_of_the_split(tmp_path):
    rows = [{"text": f"t{i}", "label": "x" if i % 4 else "y"} for i in range(8)]
    task = SequenceClassificationTask(classes=("x", "y"))
    data, store = opened(tmp_path, task, rows)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    e = Experiment(model=GPTConfig(), data=data, objective=SequenceClassification())
    (baseline,) = task.baselines(SampledRun(program(data, None), None, BYTES, store))
    assert baseline == Baseline("always the most frequent answer", pytest.approx(entropy), accuracy=0.75)
    metrics = {"loss": 0.5, "accuracy": 0.875, "tokens": 8.0, "f1": 0.25}
    text = "\n".join(table(e, metrics, store.description, [baseline]))
    assert "8 records, 8 examples" in text and "75.00%" in text and "87.50%" in text and "f1 0.2500" in text


def test_of_numbers_the_baseline_is_their_mean(tmp_path):
    data, store = opened(tmp_path, RegressionTask(), [{"text": f"t{i}", "label": float(i)} for i in (1, 3)])
    (baseline,) = data.task.baselines(SampledRun(program(data, None), None, BYTES, store))
    assert baseline == Baseline("always the mean", 1.0)  # the variance of 1 and 3
    e = Experiment(model=GPTConfig(), data=data, objective=Regression())
    text = "\n".join(table(e, {"loss": 0.5, "pearson": 0.75, "tokens": 2.0}, store.description, [baseline]))
    assert "squared error/example" in text and "pearson 0.7500" in text and "accuracy" not in text


def test_samples_show_what_is_right_and_what_the_model_says(tmp_path):
    task = SequenceClassificationTask(classes=("x", "y"))
    rows = [{"text": f"{label}{i}", "label": "x"} for i in range(6) for label in "xy"]
    data, store = opened(tmp_path, task, rows)
    says = lambda tokens, **_: jnp.stack([tokens[:, 0, 1] == ord("x"), tokens[:, 0, 1] == ord("y")], -1) * 20.0
    lines = SampledRun(program(data, says), None, BYTES, store).lines()
    assert "  | x0" in lines and "  right  label x (100%)" in lines
    assert "  | y5" in lines and "  wrong  label x > y (100%)" in lines


def test_a_program_compiles_its_predictions_once(tmp_path):
    task, traced = SequenceClassificationTask(classes=("x", "y")), []
    data, store = opened(tmp_path, task, [{"text": "a", "label": "x"}] * 2)
    tokenizer = Bytes(special_tokens=("[CLS]", "[SEP]")).build(lambda: iter(()), tmp_path)
    e = Experiment(
        model=BertConfig(max_length=16, num_layers=1, num_heads=1, embed_dim=8, vocab_size=tokenizer.vocab_size),
        data=data,
        sharding=Sharding(mesh=MeshConfig()),
    )
    built = build(e, jax.devices()[:1])

    def apply(params, tokens, **_):
        traced.append(1)
        return {"logits": jnp.stack([tokens[:, 0, 0] * params, tokens[:, 0, 0]], -1)}

    built, examples = dataclasses.replace(built, apply=apply), store.encoded(task, tokenizer, 16)
    for params, label in ((2.0, "x"), (0.5, "y")):
        answers = predict(built, params, tokenizer, store.records, examples)
        assert [answer["label"] for answer in answers] == [label] * 2
    assert len(traced) == 1


def doubled(apply, batch):
    return 2 * apply(batch["tokens"])["logits"]


def test_samples_of_a_run_share_their_compiled_programs(monkeypatch):
    made, traced, seen = [], [], []

    class Scripted:
        def __init__(self, bound):
            made.append(bound)

        def fit_max_new_tokens(self, prompts, num_tokens):
            return num_tokens

        def __call__(self, params, prompts, *_, **__):
            seen.append(params)
            return prompts

    monkeypatch.setattr(sampled_run, "make_generator", Scripted)
    shown = program(pipeline.DataConfig(), lambda tokens: tokens)
    shown.bind = lambda tokenizer: tokenizer
    shown.apply = lambda params, x: (traced.append(1), {"logits": params * x})[1]
    run = types.SimpleNamespace(pause=contextlib.nullcontext, info=lambda text: None)
    setup = types.SimpleNamespace(program=shown, tokenizer=BYTES, stores={"validation": None})
    hook, loop = Samples(every=1), types.SimpleNamespace(setup=setup, run=run)
    hook.begin(loop)
    for params in (1, 2):
        loop.state = types.SimpleNamespace(all_params=params)
        hook.act(loop)
    assert seen == [1, 2] and made == [BYTES]
    model = SampledRun(shown, 1, BYTES, None)
    assert [model.with_params(x).run(doubled, {"tokens": np.int32([3])}).item() for x in (1, 2)] == [6, 12]
    assert len(traced) == 1


def test_a_verdict_on_every_kind_of_answer():
    assert verdict({"value": 2.5}, {"value": -1.0}) == "value: 2.5 > -1"
    assert verdict({"tags": ["n", "v"]}, {"tags": ["n", None]}) == "tags: 1 of 2 right; 2: v > None"
    assert verdict({"option": 1}, {"option": 1, "probabilities": [0.1, 0.9]}) == "right  option 1 (90%)"
    assert verdict({"answer": "", "start": None}, {"answer": "x", "start": 3}) == "wrong  answer none > x"


def test_proposed_changes_can_run(tmp_path):
    e = Experiment(model=GPTConfig(num_layers=4), sample_prompt="def")
    assert "--config.model.num_layers=6" in next_commands(e, tmp_path)[-1]
    e.init_from = Pretrained(path="runs/tiny")  # its parameters determine the number of layers
    assert "num_layers" not in next_commands(e, tmp_path)[-1] and "--config.optim" in next_commands(e, tmp_path)[-1]
    e.data.task = SequenceClassificationTask()
    assert next_commands(e, tmp_path)[1].endswith("--text=def")
    e.data.task = SequenceClassificationTask(inputs=Pair())  # no text alone is a record
    assert next_commands(e, tmp_path)[1].endswith("--split=test --predictions=predictions.jsonl")
