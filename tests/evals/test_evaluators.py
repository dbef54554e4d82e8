"""Evaluators in runs: SQuAD's EM and F1, seqeval's F1, BLEU and ranks, each also as `best`, and by the command."""

import json

import numpy as np
import pytest

import jaxnlp
from jaxnlp import config as configs
from jaxnlp.data.pipeline import DataConfig
from jaxnlp.data.records import Records
from jaxnlp.data.tasks.multiple_choice import MultipleChoiceTask
from jaxnlp.data.tasks.span_extraction import SpanExtractionTask
from jaxnlp.data.tasks.text_pairs import TextPairs
from jaxnlp.data.tasks.token_classification import TokenClassificationTask
from jaxnlp.data.tokenizer import Bytes
from jaxnlp.errors import FieldError, UserError
from jaxnlp.evals.evaluator import (
    EvaluatedModel,
    GenerationEvaluator,
    LossEvaluator,
    PredictionEvaluator,
    RankingEvaluator,
    find,
)
from jaxnlp.inference.bound_model import make_generator
from jaxnlp.metrics.generation import bleu
from jaxnlp.metrics.question_answering import squad
from jaxnlp.models.bert import BertConfig
from jaxnlp.models.heads import ModelWithHead, MultipleChoiceHead, SpanExtractionHead, TokenClassificationHead
from jaxnlp.models.transformer import TransformerConfig
from jaxnlp.objectives.multiple_choice import MultipleChoice
from jaxnlp.objectives.seq2seq import Seq2Seq
from jaxnlp.objectives.span_extraction import SpanExtraction
from jaxnlp.objectives.token_classification import TokenClassification
from jaxnlp.training.experiment import Experiment
from jaxnlp.training.load import load
from jaxnlp.training.loops.supervised import train
from jaxnlp.training.run_folder.checkpoint import Reader
from tests.entry import run
from tests.training import meshed

QA = {"question": "where?", "context": "in a b", "answers": {"text": ["b"], "answer_start": [5]}}
NONE = {"question": "who?", "context": "a b", "answers": {"text": [], "answer_start": []}}
TAGS = {"words": ["Ann", "is", "in", "Ulm"], "tags": ["B-PER", "O", "O", "B-LOC"]}
PAIR = {"source": "a b c d", "target": "d c b a"}
CHOICE = {"context": "a", "options": ["b", "c", "d"], "label": 2}
HEADED = {
    "span": (SpanExtractionTask(), SpanExtractionHead(), SpanExtraction(), [QA, NONE, QA]),
    "tags": (TokenClassificationTask(), TokenClassificationHead(num_classes=3), TokenClassification(), [TAGS] * 3),
    "choice": (MultipleChoiceTask(num_options=3), MultipleChoiceHead(), MultipleChoice(), [CHOICE] * 5),
}


def experiment(folder, name, **fields):
    if name == "pairs":
        task, objective, rows = TextPairs(target_len=12), Seq2Seq(), [PAIR] * 3
        model = TransformerConfig(
            max_length=24, num_layers=1, num_decoder_layers=1, num_heads=2, embed_dim=16, mlp_dim=16
        )
    else:
        task, head, objective, rows = HEADED[name]
        body = BertConfig(max_length=24, num_layers=1, num_heads=2, embed_dim=16, heads=())
        if name == "choice":
            body.heads = ("pooler",)
        model = ModelWithHead(body=body, head=head)
    for split in ("train", "validation"):
        lines = [json.dumps(row) for row in (rows if split == "validation" else rows[:2])]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    source = Records(train=f"{folder}/train.jsonl", validation=f"{folder}/validation.jsonl")
    tokenizer = Bytes(special_tokens=("[CLS]", "[SEP]"))
    return Experiment(
        model=model,
        data=DataConfig(source=source, tokenizer=tokenizer, task=task, seq_len=24, batch_size=8, prefetch_threads=0),
        objective=objective,
        num_steps=2,
        eval_every=1,
        checkpoint_every=1,
        sample_tokens=0,
        peak_flops=1e12,
        **fields,
    )


def evaluated(loaded):
    make = lambda: make_generator(loaded.program.bind(loaded.saved.tokenizer))
    return EvaluatedModel(loaded.program, loaded.params, loaded.saved.tokenizer, make)


RUNS = {
    "span": (PredictionEvaluator(name="squad", bootstrap_samples=10), "f1", {"exact_match", "f1", "f1_low", "f1_high"}),
    "tags": (PredictionEvaluator(name="ner"), "f1", {"accuracy", "precision", "recall", "f1"}),
    "pairs": (GenerationEvaluator(name="translation"), "bleu", {"bleu", "chrf", "exact_match"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_measured_and_keeps_the_best_by_a_metric(name, tmp_path):
    evaluator, metric, wanted = RUNS[name]
    result = train(
        experiment(tmp_path, name, evaluators=(evaluator,), best=f"{evaluator.name}/{metric}:max", keep_last=1),
        tmp_path / "run",
    )
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = {row["step"]: row for row in log if row["kind"] == evaluator.name}
    assert set(rows) == {1, 2} and wanted <= set(rows[2])
    best = Reader(tmp_path / "run").best()
    assert rows[best][metric] == max(row[metric] for row in rows.values())
    outcome = evaluator.evaluate(evaluated(load(tmp_path / "run", "latest")))
    assert outcome.metrics[metric] == pytest.approx(rows[2][metric])
    assert len(outcome.rows) == 3  # the last batch is filled, and each record is counted once
    said, right = ([row[key] for row in outcome.rows] for key in ("prediction", "reference"))
    if name == "span":
        scores = squad([p["answer"] for p in said], [r["answers"] for r in right])
        assert scores["f1"] == outcome.metrics["f1"]
    if name == "pairs":
        assert bleu([p["text"] for p in said], [r["text"] for r in right])["bleu"] == outcome.metrics["bleu"]
    assert configs.from_dict(configs.to_dict(result.experiment)).evaluators == (evaluator,)


def test_the_command_evaluates_on_a_file_and_writes_predictions(tmp_path):
    train(experiment(tmp_path, "tags", evaluators=(PredictionEvaluator(name="ner"),)), tmp_path / "run")
    (tmp_path / "new.jsonl").write_text("\n".join([json.dumps(TAGS)] * 5))
    files = [f"--{flag}={tmp_path / name}" for flag, name in (("input", "new.jsonl"), ("predictions", "said.jsonl"))]
    done = run("experiments.evaluate", f"--workdir={tmp_path / 'run'}", *files, f"--out={tmp_path / 'scores.json'}")
    assert done.code == 0, done.err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert {"loss", "ner/f1", "ner/accuracy"} <= set(scores) and scores["tokens"] == 20
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and rows[0]["reference"] == {"tags": TAGS["tags"]} and len(rows[0]["prediction"]["tags"]) == 4
    assert "ner/f1" in done.out and "loss" in done.out


def test_candidates_are_ranked_and_a_loss_has_data_of_its_own(tmp_path):
    train(experiment(tmp_path, "choice"), tmp_path / "run")
    model = evaluated(load(tmp_path / "run"))
    (tmp_path / "other.jsonl").write_text(json.dumps({**CHOICE, "label": 0}) + "\n" + json.dumps(CHOICE))
    other = Records(train=str(tmp_path / "other.jsonl"), validation=str(tmp_path / "other.jsonl"))
    ranks = RankingEvaluator(name="ranks", source=other).run(model)
    assert 1 / 3 <= ranks["mean_reciprocal_rank"] <= 1 and ranks["accuracy"] in (0.0, 0.5, 1.0)
    assert LossEvaluator(name="other", source=other).run(model)["tokens"] == 2
    assert LossEvaluator(name="own").run(model)["tokens"] == 5
    assert len(PredictionEvaluator(name="few", limit=3).evaluate(model).rows) == 3
    more = PredictionEvaluator(name="more", metrics=("jaxnlp.metrics.classification:classification",)).run(model)
    assert "f1_macro" in more


def test_a_language_model_on_a_mesh_ranks_while_it_trains(corpus, tmp_path):
    rows = [{"context": "a" * i, "options": ["b", "c" * i, "dd"], "label": i % 3} for i in range(1, 6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Records(train=f"{tmp_path}/rows.jsonl", validation=f"{tmp_path}/rows.jsonl")
    e = meshed.get_config(f"{corpus},TP,data=4,tensor=2")
    e.num_steps, e.optim.warmup_steps, e.eval_every, e.checkpoint_every = 2, 0, 1, 1
    e.evaluators = (RankingEvaluator(name="next", source=source, task=MultipleChoiceTask(num_options=3)),)
    e.best = "next/mean_reciprocal_rank:max"
    model = jaxnlp.train(e, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["mean_reciprocal_rank"] for row in log if row["kind"] == "next"}
    assert scores[Reader(tmp_path / "run").best()] == max(scores.values()) and set(scores) == {1, 2}
    outcome = e.evaluators[0].evaluate(evaluated(model.loaded))
    assert outcome.metrics["mean_reciprocal_rank"] == pytest.approx(scores[2]) and len(outcome.rows) == 5
    wanted = model.score(
        [row["context"] for row in rows for _ in range(3)], [" " + x for r in rows for x in r["options"]]
    )
    np.testing.assert_allclose([x for row in outcome.rows for x in row["prediction"]["scores"]], wanted, rtol=1e-5)


def test_wrong_evaluators_are_named(tmp_path):
    for fields, message in (
        ({"best": "squad/f1:max"}, "best='squad/f1:max': no evaluator 'squad'"),
        ({"evaluators": (LossEvaluator(name="validation"),)}, "evaluators='validation': expected different names"),
        ({"evaluators": (LossEvaluator(name="a/b"),)}, r"evaluators\[0\].name='a/b': expected a name without / and :"),
    ):
        with pytest.raises(FieldError, match=message):
            configs.check(experiment(tmp_path, "span", **fields))
    with pytest.raises(UserError, match="no evaluator 'b'; expected one of a"):
        find([LossEvaluator(name="a")], ["b"])
